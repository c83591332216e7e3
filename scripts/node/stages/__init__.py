"""The stages, in the order in which they are run."""

from . import attention, collectives, gather, model

STAGES = {
    "collectives": collectives.run,
    "gather": gather.run,
    "attention": attention.run,
    "decode": attention.decode,
    "calibrate": model.calibrate,
    "verify": model.verify,
    "shards": model.shards,
}
