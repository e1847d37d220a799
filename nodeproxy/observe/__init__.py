"""What nodeproxy tells about connections and itself: labels, counters, metrics, access log.

Workers import `labels`, `counters` and `access_log` only; `metrics` needs prometheus-client and is the agent's.
"""
