# The active experiments; everything the rules ask is answered by ltpipe.spec.workflow, which never imports torch.
from snakemake.exceptions import WorkflowError

from ltpipe.errors import UserError
from ltpipe.spec.workflow import Pipeline, growing

try:
    PIPELINE = Pipeline(config["experiments"])
    # Everything that can be wrong with the number of phases is said here and not in an input function.
    PHASES = PIPELINE.phases
    PIPELINE.checkpoints
except UserError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    experiment="|".join(map(re.escape, PIPELINE.experiments)),
    dataset="|".join(map(re.escape, PIPELINE.datasets)),
    calibrator="|".join(map(re.escape, PIPELINE.calibrators)) or "none",
    checkpoint="|".join(map(re.escape, PIPELINE.checkpoints)),
