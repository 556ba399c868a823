"""gradcheck: a verdict on hand-written gradients that can be trusted.

report = gradcheck.check_pair(forward, backward, (x, weight, bias))
print(report)
report.raise_if_failed()
"""

from gradcheck.harness import check, check_pair
from gradcheck.judge import Check, Verdict
from gradcheck.report import GradcheckError, Report

__all__ = ["Check", "GradcheckError", "Report", "Verdict", "check", "check_pair"]
