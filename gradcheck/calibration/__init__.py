"""How far the checker itself can be trusted, measured: false alarms, the error bar, hard cases, cost."""
