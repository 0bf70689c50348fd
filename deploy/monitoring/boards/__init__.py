"""The dashboards: what is on them and why."""

from deploy.monitoring.boards.encoder import ENCODER
from deploy.monitoring.boards.ingest import INGEST
from deploy.monitoring.boards.match import MATCH
from deploy.monitoring.boards.overview import OVERVIEW

DASHBOARDS = (OVERVIEW, ENCODER, INGEST, MATCH)
