# ruff: noqa
# type: ignore
"""Planted defects: the rule named at the end of a line must find that line; it must not find those marked `fine`.

This file is read by a scanner and never run.
"""

import asyncio
import os
import ssl
import subprocess

import jinja2
import markupsafe
import requests
from airflow.sdk import Connection, Param, Variable
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

from marketdata.lakehouse.statements import identifier, text
from marketdata.orchestration.pod import MarketdataPodOperator

ENDPOINT = Variable.get("commodity_api_url")  # dag-reaches-out-at-parse-time
ANSWER = Connection.get("kubernetes_default")  # dag-reaches-out-at-parse-time
TENANT = os.environ["TENANT"]  # dag-reaches-out-at-parse-time
LEVEL = os.getenv("LOG_LEVEL")  # dag-reaches-out-at-parse-time
PRICES = requests.get("https://prices.example.com", timeout=5, allow_redirects=False)  # dag-reaches-out-at-parse-time


def when_it_runs() -> str:
    return Variable.get("commodity_api_url")  # fine


def by_name(connection, series: str):
    connection.execute(f"DELETE FROM prices WHERE series = '{series}'")  # sql-from-text
    connection.execute("DELETE FROM prices WHERE series = '%s'" % series)  # sql-from-text
    connection.execute("DELETE FROM prices WHERE series = '{}'".format(series))  # sql-from-text
    connection.execute("DELETE FROM prices WHERE series = '" + series + "'")  # sql-from-text
    condition = f"series = '{series}'"
    statement = "SELECT * FROM prices WHERE " + condition
    connection.sql(statement)  # sql-from-text
    connection.execute("DELETE FROM prices WHERE series = %s", (series,))  # fine
    connection.execute(f"DELETE FROM {identifier('prices')} WHERE series = {text(series)}")  # fine


def by_setting(connection, settings, batch):
    connection.execute(f"CREATE SCHEMA {os.environ['TENANT']}")  # sql-from-text
    connection.execute(f"SELECT * FROM t WHERE run = '{batch.manifest.run_id}'")  # sql-from-text
    connection.execute(f"CREATE TABLE t WITH (location = '{settings.require('lake_uri')}')")  # sql-from-text


def shells(words):
    os.system(f"marketdata {words}")  # shell-string
    os.popen("marketdata " + words)  # shell-string
    subprocess.run("marketdata " + words, shell=True)  # shell-string
    subprocess.getoutput("marketdata " + words)  # shell-string
    asyncio.create_subprocess_shell(words)  # shell-string
    k8s.V1Container(name="base", command=["/bin/sh", "-c", f"marketdata {words}"])  # shell-string
    k8s.V1Container(name="base", command=["bash", "-euc", "marketdata {{ params.sources }}"])  # shell-string
    subprocess.run(["marketdata", *words])  # fine


MarketdataPodOperator(task_id="a", command=["extract", "--sources", "{{ params.sources }}"])  # fine
MarketdataPodOperator(task_id="b", command=["{{ params.command }}"])  # dag-command-begins-with-jinja
MarketdataPodOperator(task_id="c", command=["{{ params.command }}", "--dataset", "x"])  # dag-command-begins-with-jinja
MarketdataPodOperator(task_id="d", command=["extract{% if params.dry %}x{% endif %}"])  # dag-command-begins-with-jinja
MarketdataPodOperator(task_id="e", command=[chosen(), "--dataset", "x"])  # dag-command-in-a-template
MarketdataPodOperator(task_id="f", command="{{ params.words }}")  # dag-command-in-a-template
MarketdataPodOperator(task_id="g", command=["load"], image="{{ params.image }}")  # dag-decides-the-pod
MarketdataPodOperator(task_id="h", command=["load"], namespace="{{ params.namespace }}")  # dag-decides-the-pod
MarketdataPodOperator(task_id="i", command=["load"], service_account_name="admin")  # dag-decides-the-pod
MarketdataPodOperator(task_id="j", command=["load"], cmds=["{{ params.command }}"])  # dag-decides-the-pod
MarketdataPodOperator(task_id="k", command=["load"], env_vars={"TENANT": "{{ params.tenant }}"})  # dag-decides-the-pod
KubernetesPodOperator(task_id="l")  # dag-decides-the-pod
BashOperator(task_id="m", bash_command="echo {{ params.sources }}")  # dag-interpreter
PythonOperator(task_id="n", python_callable=print)  # dag-interpreter

Param(None, type=["null", "string"])  # dag-parameter-without-bounds
Param("archive", type="string", description="Sources")  # dag-parameter-without-bounds
Param("archive", type="string", pattern="^[a-z]+$")  # dag-parameter-without-bounds
Param("archive", type="string", pattern="^[a-z]+$", maxLength=20)  # fine
Param(None, type=["null", "string"], format="date")  # fine
Param(1, type="integer")  # fine

k8s.V1EnvVar(name="POSTGRES_DSN", value="planted")  # secret-in-a-literal-variable
k8s.V1EnvVar(name="SLACK_TOKEN", value="planted")  # secret-in-a-literal-variable
SETTINGS = {"COMMODITY_API_KEY": "planted"}  # secret-in-a-literal-variable
k8s.V1EnvVar(name="TENANT", value="default")  # fine
k8s.V1EnvVar(name="POSTGRES_DSN", value_from=SETTINGS)  # fine


def sets():
    os.environ["AWS_SECRET_ACCESS_KEY"] = "planted"  # secret-in-a-literal-variable


def says(log, settings):
    log.info("key %s", settings.commodity_api_key.get_secret_value())  # secret-is-said
    print(f"key {settings.commodity_api_key.get_secret_value()}")  # secret-is-said
    raise ValueError(f"refused {settings.postgres_dsn.get_secret_value()}")  # secret-is-said


def asks(session, url):
    session.get(url, stream=True, timeout=(5, 30), allow_redirects=False)  # fine
    session.get(url, stream=True, timeout=(5, 30))  # redirects-are-followed
    requests.get(url, timeout=5)  # redirects-are-followed
    requests.get(url, timeout=5, allow_redirects=True)  # redirects-are-followed
    session.get(url, timeout=5, allow_redirects=False, verify=False)  # certificates-unchecked
    session.verify = False  # certificates-unchecked
    ssl._create_unverified_context()  # certificates-unchecked


def renders(task, conf):
    jinja2.Template(conf["sources"]).render()  # text-as-a-template
    task.render_template(conf["sources"], {})  # text-as-a-template
    jinja2.Environment()  # text-as-a-template
    jinja2.Environment(autoescape=False)  # text-as-a-template
    markupsafe.Markup(conf["sources"])  # text-as-a-template
    jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)  # fine
