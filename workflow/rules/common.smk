# The active experiments; everything the rules ask is answered by ltpipe.pipeline.rules, which never imports torch.
# Nothing is changed while the rules are read or in a dry run.
from snakemake.exceptions import WorkflowError

from ltpipe.errors import UserError
from ltpipe.run.snakemake_lock import check_owner
from ltpipe.pipeline.rules import Pipeline, growing

try:
    PIPELINE = Pipeline(config["experiments"])
    # Everything that can be wrong with the number of phases is said here and not in an input function.
    PHASES = PIPELINE.phases
    PIPELINE.checkpoints
    if workflow.is_main_process:
        check_owner()
        PIPELINE.reruns.steer(workflow)
except UserError as error:
    raise WorkflowError(str(error)) from None


def reads(stage, key=None):
    """Input function: files that a stage reads. Times of those that stay mean nothing: ltpipe compares contents."""

    def of_wildcards(wildcards):
        try:
            files = PIPELINE.inputs(stage, key, wildcards)
        except UserError as error:
            raise WorkflowError(str(error)) from None
        return [ancient(file) if stays else file for file, stays in files.items()]

    return of_wildcards


def names(allowed):
    """A pattern for these names and no others."""
    return "|".join(map(re.escape, allowed)) or "none"


wildcard_constraints:
    experiment=names(PIPELINE.experiments),
    dataset=names(PIPELINE.datasets),
    calibrator=names(PIPELINE.calibrators),
    checkpoint=names(PIPELINE.checkpoints),
