"""The findings of `passfs doctor` as a document, and their verdict; no I/O."""

from collections import Counter
from collections.abc import Sequence

from plugin.commands.document import Block, Pairs, Table
from plugin.doctor.finding import Finding, State


def document(findings: Sequence[Finding]) -> list[Block]:
    """Return a table of all findings, then the meaning and the remedy of those that are not ok."""
    lines = [(each.check, each.state, each.found) for each in findings]
    blocks: list[Block] = [Table("", ("CHECK", "STATE", "FOUND"), lines)]
    for each in findings:
        if each.state is not State.OK:
            rows = [("found", each.found), ("meaning", each.meaning), ("remedy", each.remedy)]
            blocks.append(Pairs(f"{each.check} ({each.state})", rows))
    return [*blocks, Pairs("", [("result", _summary(findings))])]


def is_well(findings: Sequence[Finding], *, strict: bool) -> bool:
    """Return whether no finding is an error; if *strict*, nor a warning."""
    bad = {State.ERROR, State.WARNING} if strict else {State.ERROR}
    return not any(finding.state in bad for finding in findings)


def _summary(findings: Sequence[Finding]) -> str:
    """Return the count of findings by their state, the worst first."""
    count = Counter(finding.state for finding in findings)
    return ", ".join(_counted(count[state], state) for state in reversed(State) if count[state])


def _counted(number: int, state: State) -> str:
    plural = number > 1 and state is not State.OK
    return f"{number} {state}{'s' if plural else ''}"
