"""One break for each thing that the checks promise to see. A break that a check does not see means that the check is
worth nothing."""

from . import compose, kubernetes, logs, services

MUTATIONS = [*kubernetes.MUTATIONS, *compose.MUTATIONS, *services.MUTATIONS, *logs.MUTATIONS]
