# Further targets by name: `phase_<k>` (up to that phase) and `all_<stage>` (up to that stage).


for stage in PIPELINE.stages:

    rule:
        name:
            f"all_{stage}"
        localrule: True
        input:
            PIPELINE.records("validate", stage),


for phase in PHASES:

    rule:
        name:
            f"phase_{phase}"
        localrule: True
        input:
            PIPELINE.records("validate"),
            PIPELINE.records("lst", phase=phase),
