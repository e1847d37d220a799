"""The node's long-lived process: sources of state, certificates, enrolment, and the workers' parent.  No byte of traffic passes
here."""
