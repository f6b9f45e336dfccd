import copy

import pytest

from rm_methods.errors import UserError
from rm_methods.policies.make_policy import make_policy


@pytest.mark.parametrize(("policy", "named"), [(None, "backbone"), ({}, "overoptimization.policy")])
def test_errors_about_the_policy_name_the_section_that_the_user_wrote(prepared, tmp_path, policy, named):
    config = copy.deepcopy(prepared[2])
    missing = config["backbone"] | {"source": str(tmp_path / "absent")}
    config["backbone"] = missing
    config["overoptimization"]["policy"] = None if policy is None else missing
    with pytest.raises(UserError) as error:
        make_policy(config, prepared[0], tmp_path / "sft", tmp_path / "work", threads=0)
    assert f"{named}.source = '{missing['source']}'" in str(error.value)
    assert policy is None or "backbone." not in str(error.value)
