"""What Interaction Distillation needs beside the reward model: the joint teacher, token alignment, and alignment
objectives."""
