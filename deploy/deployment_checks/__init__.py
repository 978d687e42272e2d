"""Checks of deploy/launchd, systemd, compose, kubernetes and logs. deploy/check-deployments runs them."""
