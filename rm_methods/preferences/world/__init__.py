from rm_methods.preferences.world.generator import OPTIONS, SPLITS, TEST_SPLITS, generate
from rm_methods.preferences.world.gold import gold
