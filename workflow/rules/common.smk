# The active experiments; everything the rules ask is answered by ltpipe.pipeline.rules, which never imports torch.
from snakemake.exceptions import WorkflowError

from ltpipe.errors import UserError
from ltpipe.run.snakemake_lock import hold_run_lock
from ltpipe.pipeline.rules import Pipeline, growing

try:
    PIPELINE = Pipeline(config["experiments"])
    # Everything that can be wrong with the number of phases is said here and not in an input function.
    PHASES = PIPELINE.phases
    PIPELINE.checkpoints
    # Open as long as this Snakemake lives; the nested ones of cluster jobs have none.
    RUN_LOCK = hold_run_lock() if workflow.is_main_process else None
except UserError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    PIPELINE.bring_to_the_past()


def names(allowed):
    """A pattern for these names and no others."""
    return "|".join(map(re.escape, allowed)) or "none"


wildcard_constraints:
    experiment=names(PIPELINE.experiments),
    dataset=names(PIPELINE.datasets),
    calibrator=names(PIPELINE.calibrators),
    checkpoint=names(PIPELINE.checkpoints),
