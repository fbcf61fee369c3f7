"""Training and the runs of the command line."""

from part_robust.engine.adversarial_loader import AdversarialLoader
from part_robust.engine.checkpoint import CheckpointMismatch, PartCheckpointer
from part_robust.engine.launch import launch
from part_robust.engine.setup import end_process_group, evaluate, setup, train
from part_robust.engine.trainer import PartTrainer
from part_robust.evaluation.journal import JournalMismatch

__all__ = [
    "AdversarialLoader",
    "CheckpointMismatch",
    "JournalMismatch",
    "PartCheckpointer",
    "PartTrainer",
    "end_process_group",
    "evaluate",
    "launch",
    "setup",
    "train",
]
