"""`grouper report`: a run as one page that needs no network, and as pictures for papers."""

from search.report.page import write_report
from search.report.pictures import PICTURES, write_pictures

__all__ = ["PICTURES", "write_pictures", "write_report"]
