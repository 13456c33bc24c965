import pytest

from grouper.calibration.source import TextSource
from search import RunFolder, SearchOptions, evaluate, search
from search.report.bounds import write_bounds


@pytest.fixture(scope="session")
def measured_run(reader, tmp_path_factory):
    """Searched, measured in part, one layout refined."""
    run = tmp_path_factory.mktemp("report") / "run"
    search(reader, run, SearchOptions(("qcqa-ac", "separate"), "weight", population=12, generations=4))
    evaluate(run, TextSource("demo", purpose="evaluation"), window=64, limit=2)
    folder = RunFolder(run)
    table = folder.front().table
    folder.note_refined(int(table["layout"].iloc[-1]), "mean+refine", [(0.5, 0.2), (0.6, 0.3), (0.7, 0.4)])
    write_bounds(folder, numbers=[1, int(table["layout"].iloc[-1])])
    return folder
