"""Where a finding is lost: what every stage of a model says of one scan.

Betancur et al. §5 looks at 2D boxes and feature maps to find out why its model
fails. Here is the same for any model, scan and view, and for the stages that
come after: volume, queries and attention.
"""

from projects.mv2d_xray.diagnosis.scan import report_scan
from projects.mv2d_xray.diagnosis.trace import Trace, trace
from projects.mv2d_xray.diagnosis.verdicts import VISIBLE, diagnose, verdict

__all__ = ['VISIBLE', 'Trace', 'diagnose', 'report_scan', 'trace', 'verdict']
