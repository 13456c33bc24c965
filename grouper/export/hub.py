"""Push of exports to the Hub. huggingface_hub takes the token from HF_TOKEN or its login cache; Grouper neither reads
nor shows it."""

from dataclasses import dataclass
from pathlib import Path

from grouper.checkpoint.sources import hub_errors
from grouper.errors import GrouperError
from grouper.names import printable
from grouper.option_fields import MISSING, option


@dataclass(frozen=True)
class Destination:
    """Repository on the Hub, and options of the push."""

    repo_id: str = option(MISSING, "Hub repository to push to.", panel="Hub", name="push_to_hub", metavar="USER/NAME")
    private: bool = option(False, "Create the Hub repository as private.", panel="Hub")
    revision: str | None = option(None, "Branch to push to; created if missing.", panel="Hub")
    create_pr: bool = option(False, "Open a pull request instead of committing.", panel="Hub")
    commit_message: str | None = option(None, "Commit message for the push.", panel="Hub")

    def check(self) -> None:
        """Raise GrouperError if a push would fail because of the name or a missing login. Called before any work is
        done."""
        from huggingface_hub import HfApi

        if self.repo_id.count("/") != 1 or not all(self.repo_id.split("/")):
            raise GrouperError(f"`repo_id={self.repo_id!r}`: expected USER/NAME")
        with hub_errors(self.repo_id, self.revision):
            HfApi().whoami()

    def push(self, folder: Path) -> str:
        """Upload the folder in one commit and return the address of the commit or pull request. Files that an earlier,
        interrupted push uploaded are not sent again."""
        from huggingface_hub import HfApi

        api, message = HfApi(), printable(self.commit_message or "Regrouped with Grouper")
        try:
            with hub_errors(self.repo_id, self.revision):
                api.create_repo(self.repo_id, private=self.private or None, exist_ok=True)
                if self.revision and not self.create_pr:
                    api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=self.repo_id,
                    folder_path=folder,
                    revision=self.revision,
                    create_pr=self.create_pr,
                    commit_message=message,
                )
        except GrouperError as error:
            raise GrouperError(
                f"{folder} is written but not pushed ({error}); the same command again pushes it"
            ) from error
        return commit.pr_url or commit.commit_url
