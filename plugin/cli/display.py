"""The steps of an installation on a terminal."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn


class Display:
    """Numbered steps, and a bar for a count of bytes; plain lines without a terminal.

    With *stderr* they go to standard error, which leaves standard output to a document.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._console = Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False)
        self._steps = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def step(self, title: str) -> None:
        """Begin the next step."""
        self.close()
        self._steps += 1
        self._console.print(f"{self._steps}. {title}", style="bold")

    def line(self, text: str) -> None:
        """Show a line of the step."""
        self._console.print(f"   {text}", style="dim")

    def amount(self, done: int, total: int) -> None:
        """Show that *done* of about *total* bytes are done."""
        if self._bar is None:
            columns = (TextColumn("  "), BarColumn(), DownloadColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """End the bar, so that the terminal shows a finished step."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
