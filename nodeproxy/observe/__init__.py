"""What nodeproxy tells about connections and itself: labels, counters, metrics, access log.

Workers import `labels`, `counters`, `access_log` and `log_writer` only; `metrics` needs prometheus-client and is the agent's.
"""
