"""The only room that knows Airflow: how a pod is built, what it may never be, and how a run is started and followed."""
