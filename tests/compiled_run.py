"""Runs a compiled Kubeflow pipeline on this machine, as the backend and its launcher would.

kfp's own local runner refuses container components. This one reads the compiled YAML alone: it
passes parameters and digests from task to task, hands each container the JSON that the launcher
writes, starts its command as a process, tries it again by the task's retry policy, and runs the
exit handler whatever happened before it.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

JOB = "{{$.pipeline_job_uuid}}"


@dataclass
class Attempt:
    "One start of a task's container."

    task: str
    code: int  # exit code; negative: ended by a signal, as where a node is taken away
    output: str


@dataclass
class CompiledRun:
    "A run of a compiled pipeline."

    file: Path
    arguments: dict  # values of the pipeline's inputs, over its defaults
    folder: Path  # for what the launcher keeps
    env: dict  # of all containers, over the environment
    job: str = "job-1"
    # task -> file whose appearance kills its first try, or seconds after which it is killed
    kill: dict[str, Path | float] = field(default_factory=dict)
    attempts: list = field(default_factory=list)

    def __post_init__(self):
        self.spec, _ = yaml.safe_load_all(self.file.read_text())
        self.components = self.spec["components"]
        self.executors = self.spec["deploymentSpec"]["executors"]

    def run(self) -> dict[str, str]:  # task -> succeeded, failed or skipped
        "Run all tasks of the pipeline and return their states."
        declared = self.spec["root"]["inputDefinitions"]["parameters"]
        values = {name: one.get("defaultValue") for name, one in declared.items()}
        return self._run_graph(self.spec["root"]["dag"], values | self.arguments)

    def _run_graph(self, graph: dict, inputs: dict) -> dict[str, str]:
        "Run the tasks of a graph after those that they depend on."
        states: dict[str, str] = {}
        outputs: dict[str, dict] = {}
        waiting = dict(graph["tasks"])
        while waiting:
            ready = [n for n, t in waiting.items() if set(t.get("dependentTasks", ())) <= {*states}]
            assert ready, f"{self.file}: the tasks {sorted(waiting)} wait for each other"
            name = sorted(ready)[0]
            task = waiting.pop(name)
            policy = task.get("triggerPolicy", {}).get("strategy", "")
            before = [states[other] for other in task.get("dependentTasks", ())]
            if policy != "ALL_UPSTREAM_TASKS_COMPLETED" and set(before) - {"succeeded"}:
                states[name] = "skipped"
                continue
            values = {
                key: self._value(source, inputs, outputs)
                for key, source in task.get("inputs", {}).get("parameters", {}).items()
            }
            component = self.components[task["componentRef"]["name"]]
            if "dag" in component:
                inner = self._run_graph(component["dag"], values)
                failed = set(inner.values()) - {"succeeded"}
                states |= inner | {name: "failed" if failed else "succeeded"}
            else:
                outputs[name] = self._run_task(name, task, component, values)
                states[name] = "succeeded" if outputs[name] is not None else "failed"
        return states

    def _value(self, source: dict, inputs: dict, outputs: dict):
        "Return the value of a task's parameter."
        if "componentInputParameter" in source:
            return inputs[source["componentInputParameter"]]
        if "taskOutputParameter" in source:
            found = source["taskOutputParameter"]
            return outputs[found["producerTask"]][found["outputParameterKey"]]
        constant = source["runtimeValue"]["constant"]
        return self.job if constant == JOB else constant

    def _run_task(self, name: str, task: dict, component: dict, values: dict) -> dict | None:
        "Start a task's container until it succeeds or its retries end; return its parameters."
        retries = task.get("retryPolicy", {}).get("maxRetryCount", 0)
        longest = float(task.get("retryPolicy", {}).get("backoffMaxDuration", "0s")[:-1])
        began = time.monotonic()
        for attempt in range(retries + 1):
            if attempt and time.monotonic() - began > longest:
                return None
            folder = self.folder / name / str(attempt)
            folder.mkdir(parents=True)
            places = self._outputs(component, folder)
            if self._start(name, component, dict(values), places, first=not attempt) == 0:
                found = places.get("parameters", {})
                return {key: Path(one["outputFile"]).read_text() for key, one in found.items()}
        return None

    def _outputs(self, component: dict, folder: Path) -> dict:
        "Return where a container shall leave its outputs, as the launcher says it."
        declared = component.get("outputDefinitions", {})
        artefacts = {
            name: dict(artifacts=[dict(name=name, uri=str(folder / name), metadata={})])
            for name in declared.get("artifacts", {})
        }
        parameters = {
            name: dict(outputFile=str(folder / f"{name}.txt"))
            for name in declared.get("parameters", {})
        }
        outcome = str(folder / "executor_output.json")
        return dict(artifacts=artefacts, parameters=parameters, outputFile=outcome)

    def _start(self, name, component, values: dict, places: dict, first: bool) -> int:
        "Start a container's command once and return its exit code."
        container = self.executors[component["executorLabel"]]["container"]
        types = component.get("inputDefinitions", {}).get("parameters", {})
        for key, declared in types.items():  # numbers pass through protobuf's Struct
            if declared["parameterType"].startswith("NUMBER_"):
                values[key] = float(values[key])
        given = json.dumps(dict(inputs=dict(parameterValues=values), outputs=places))
        words = [*container["command"], *container["args"]]
        words = [given if word == "{{$}}" else _filled(word, values) for word in words]
        with open(self.folder / name / "log.txt", "ab") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, env=os.environ | self.env, start_new_session=True
            )
            if first and name in self.kill:
                _kill_at(process, self.kill[name])
            code = process.wait()
        text = (self.folder / name / "log.txt").read_text(errors="replace")
        self.attempts.append(Attempt(name, code, text))
        return code


def _kill_at(process: subprocess.Popen, moment: Path | float) -> None:
    "Kill a container's processes once a file is there, or after seconds; not if it ends before."
    began = time.monotonic()
    while process.poll() is None:
        is_file = isinstance(moment, Path)
        if moment.is_file() if is_file else time.monotonic() - began > moment:
            os.killpg(process.pid, signal.SIGKILL)
            return
        time.sleep(0.01)


def _filled(word: str, values: dict) -> str:
    "Return a word of a command with its input placeholders filled."
    for key, value in values.items():
        word = word.replace(f"{{{{$.inputs.parameters['{key}']}}}}", str(value))
    assert "{{" not in word, f"a placeholder that the launcher would not fill: {word}"
    return word
