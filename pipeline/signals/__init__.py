"""Who is told how a run stands, and by what: webhook, mail, metrics, traces."""
