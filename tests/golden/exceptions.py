"""The list of all that differs from the reference on purpose, or cannot be compared. Everything else must be equal."""

from collections.abc import Mapping

UNLIKE_THE_REFERENCE: Mapping[str, str] = {
    "counters that wrap": (
        "The reference's counters restart after as many calls as a clip has steps, although some samplers make more calls "
        "(PNDM nine more). Our plan covers every call of the clip. Checked: the reference's letters follow from counters "
        "that wrap, ours from counters that do not, and with the reference's letters our numbers equal the reference's."
    ),
    "counters that are not reset": (
        "The reference's counters continue from the previous clip. We make a new plan for every clip. Checked: the "
        "reference's second clip follows from counters that continue; our second clip equals our first, bit for bit."
    ),
    "counters that two passes share": (
        "Vchitect's unconditional and conditional pass share one set of counters and one store, so the second reuses the "
        "first's attention. Our passes never reuse across guidance branches. Checked: the reference's letters only."
    ),
    "outputs of the clip before": (
        "With counters that continue, the reference may reuse an output of the previous clip. We keep none. "
        "Checked: letters only."
    ),
    "stored and not reused": (
        "The reference stores an MLP output at every key timestep and may leave it in its store. We keep only what is "
        "reused. Checked: its letters S and what stays in its store follow from the store; ours reuse the same outputs."
    ),
    "intermediate results": "Tensors named mid.* help to find an error. Only the final results are compared.",
}


def reason(name: str) -> str:
    """Returns an entry's reason. A check that leaves something out calls this, so that it names an entry of the list."""
    return UNLIKE_THE_REFERENCE[name]
