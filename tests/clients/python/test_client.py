"""What Python programs do with the Kubernetes API, by the official client, against the cluster that KUBECONFIG names.

With DHOW_TEST_POD (the name of a pod that runs) what needs one is tested, too.
"""

import os
import queue
import unittest
import uuid

from kubernetes import client, config, dynamic, stream, utils, watch
from kubernetes.informer.informer import ADDED, DELETED, MODIFIED, SharedInformer

NAMESPACE = "default"
# Far longer than anything takes.
LIMIT = 60
POD = os.environ.get("DHOW_TEST_POD")


def config_map(name, **data):
    metadata = client.V1ObjectMeta(name=name, labels={"suite": "python"})
    return client.V1ConfigMap(metadata=metadata, data=data)


def deployment(name):
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "image:1", "ports": [{"containerPort": 80}]}]},
    }
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        config.load_kube_config()
        cls.core = client.CoreV1Api()
        cls.apps = client.AppsV1Api()

    def setUp(self):
        self.name = f"python-{uuid.uuid4().hex[:8]}"

    def refused(self, status, reason, call, *arguments, **named):
        with self.assertRaises(client.ApiException) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.status, status)
        self.assertIn(f'"reason":"{reason}"', caught.exception.body.replace(" ", ""))

    def test_create_read_replace_patch_delete(self):
        made = self.core.create_namespaced_config_map(NAMESPACE, config_map(self.name, a="1"))
        self.assertTrue(made.metadata.uid)
        self.refused(409, "AlreadyExists", self.core.create_namespaced_config_map, NAMESPACE, config_map(self.name))
        read = self.core.read_namespaced_config_map(self.name, NAMESPACE)
        self.assertEqual(read.to_dict(), made.to_dict())
        read.data = {"a": "2"}
        replaced = self.core.replace_namespaced_config_map(self.name, NAMESPACE, read)
        self.assertNotEqual(replaced.metadata.resource_version, made.metadata.resource_version)
        self.refused(409, "Conflict", self.core.replace_namespaced_config_map, self.name, NAMESPACE, made)
        patches = [
            ({"data": {"b": "3"}}, {"a": "2", "b": "3"}),
            ({"data": {"a": None}}, {"b": "3"}),
            ([{"op": "replace", "path": "/data/b", "value": "4"}], {"b": "4"}),
        ]
        for patch, want in patches:
            self.assertEqual(self.core.patch_namespaced_config_map(self.name, NAMESPACE, patch).data, want)
        dry = self.core.delete_namespaced_config_map(self.name, NAMESPACE, dry_run="All")
        self.assertEqual(dry.status, "Success")
        self.core.delete_namespaced_config_map(self.name, NAMESPACE)
        self.refused(404, "NotFound", self.core.read_namespaced_config_map, self.name, NAMESPACE)

    def test_lists(self):
        for i in range(5):
            made = config_map(f"{self.name}-{i}")
            made.metadata.labels["one"] = self.name
            self.core.create_namespaced_config_map(NAMESPACE, made)
        selector = f"suite=python,one={self.name}"
        names, token = [], None
        while token != "":
            page = self.core.list_namespaced_config_map(NAMESPACE, label_selector=selector, limit=2, _continue=token)
            names += [item.metadata.name for item in page.items]
            token = page.metadata._continue or ""
        self.assertEqual(names, [f"{self.name}-{i}" for i in range(5)])
        field = f"metadata.name={self.name}-3"
        everywhere = self.core.list_config_map_for_all_namespaces(field_selector=field)
        self.assertEqual([item.metadata.namespace for item in everywhere.items], [NAMESPACE])
        self.core.delete_collection_namespaced_config_map(NAMESPACE, label_selector=selector)
        self.assertEqual(self.core.list_namespaced_config_map(NAMESPACE, label_selector=selector).items, [])

    def test_watch(self):
        start = self.core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
        self.core.create_namespaced_config_map(NAMESPACE, config_map(self.name, a="1"))
        self.core.patch_namespaced_config_map(self.name, NAMESPACE, {"data": {"a": "2"}})
        self.core.delete_namespaced_config_map(self.name, NAMESPACE)
        events = []
        watching = watch.Watch()
        for event in watching.stream(
            self.core.list_namespaced_config_map,
            NAMESPACE,
            field_selector=f"metadata.name={self.name}",
            resource_version=start,
            timeout_seconds=LIMIT,
        ):
            events.append((event["type"], event["object"].data["a"]))
            if event["type"] == "DELETED":
                watching.stop()
        self.assertEqual(events, [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")])

    def test_informer(self):
        self.core.create_namespaced_config_map(NAMESPACE, config_map(self.name, a="1"))
        told = queue.Queue()
        informer = SharedInformer(
            self.core.list_namespaced_config_map, NAMESPACE, field_selector=f"metadata.name={self.name}"
        )
        for kind in (ADDED, MODIFIED, DELETED):
            informer.add_event_handler(kind, lambda found, kind=kind: told.put((kind, found.data["a"])))
        informer.start()
        self.addCleanup(informer.stop)
        self.assertEqual(told.get(timeout=LIMIT), (ADDED, "1"))
        self.core.patch_namespaced_config_map(self.name, NAMESPACE, {"data": {"a": "2"}})
        self.assertEqual(told.get(timeout=LIMIT), (MODIFIED, "2"))
        self.assertEqual(informer.cache.get_by_key(f"{NAMESPACE}/{self.name}").data, {"a": "2"})
        self.core.delete_namespaced_config_map(self.name, NAMESPACE)
        self.assertEqual(told.get(timeout=LIMIT), (DELETED, "2"))

    def test_deployment(self):
        utils.create_from_dict(client.ApiClient(), deployment(self.name))
        scaled = self.apps.patch_namespaced_deployment_scale(self.name, NAMESPACE, {"spec": {"replicas": 0}})
        # None at all is not written.
        self.assertEqual((scaled.kind, scaled.spec.replicas, scaled.status.selector), ("Scale", None, f"app={self.name}"))
        patch = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "image:2"}]}}}}
        patched = self.apps.patch_namespaced_deployment(self.name, NAMESPACE, patch)
        container = patched.spec.template.spec.containers[0]
        self.assertEqual((container.image, container.ports[0].container_port), ("image:2", 80))
        self.assertEqual(patched.spec.strategy.rolling_update.max_surge, "25%")
        # The old sets' controller writes a status; what is watched is the state, not how often it changed.
        watching = watch.Watch()
        for event in watching.stream(
            self.apps.list_namespaced_deployment,
            NAMESPACE,
            field_selector=f"metadata.name={self.name}",
            timeout_seconds=LIMIT,
        ):
            status = event["object"].status
            if status.observed_generation == patched.metadata.generation:
                watching.stop()
        self.assertEqual(status.observed_generation, patched.metadata.generation)
        self.apps.delete_namespaced_deployment(self.name, NAMESPACE, propagation_policy="Foreground")

    def test_custom_objects(self):
        functions = client.CustomObjectsApi()
        kind = ("dhow.dev", "v1alpha1", NAMESPACE, "functions")
        spec = {"source": {"inline": {"files": {"main.py": "def handle(request):\n    return 'ok'\n"}}}}
        function = {"apiVersion": "dhow.dev/v1alpha1", "kind": "Function", "metadata": {"name": self.name}, "spec": spec}
        functions.create_namespaced_custom_object(*kind, function)
        patch = {"spec": {"timeoutSeconds": 7}}
        functions.patch_namespaced_custom_object(*kind, self.name, patch)
        self.assertEqual(functions.get_namespaced_custom_object(*kind, self.name)["spec"]["timeoutSeconds"], 7)
        wrong = {**function, "metadata": {"name": "wrong"}, "spec": {**spec, "timeoutSeconds": -1}}
        self.refused(422, "Invalid", functions.create_namespaced_custom_object, *kind, wrong)
        functions.delete_namespaced_custom_object(*kind, self.name)

    def test_dynamic_client(self):
        discovered = dynamic.DynamicClient(client.ApiClient())
        maps = discovered.resources.get(api_version="v1", kind="ConfigMap")
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self.name}, "data": {"a": "1"}}
        applied = maps.server_side_apply(body, namespace=NAMESPACE, field_manager="python")
        self.assertEqual(applied.metadata.managedFields[0].operation, "Apply")
        body["data"] = {"b": "2"}
        self.assertEqual(
            maps.server_side_apply(body, namespace=NAMESPACE, field_manager="python").data.to_dict(), {"b": "2"}
        )
        with self.assertRaises(dynamic.exceptions.ConflictError):
            maps.server_side_apply({**body, "data": {"b": "3"}}, namespace=NAMESPACE, field_manager="another")
        names = {found.kind for found in discovered.resources.search(group="dhow.dev")}
        self.assertLessEqual({"Function", "Build"}, names)
        maps.delete(name=self.name, namespace=NAMESPACE)

    def test_what_it_is_told_about_the_server(self):
        self.assertEqual(client.VersionApi().get_code().major, "1")
        groups = {group.name for group in client.ApisApi().get_api_versions().groups}
        self.assertLessEqual({"apps", "dhow.dev", "serving.knative.dev"}, groups)
        review = {"spec": {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": NAMESPACE}}}
        answer = client.AuthorizationV1Api().create_self_subject_access_review(review)
        self.assertTrue(answer.status.allowed)

    @unittest.skipUnless(POD, "no pod to look at")
    def test_pod(self):
        pod = self.core.read_namespaced_pod(POD, NAMESPACE)
        self.assertEqual(pod.status.phase, "Running")
        self.assertIsInstance(self.core.read_namespaced_pod_log(POD, NAMESPACE, tail_lines=1), str)
        on_node = self.core.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={pod.spec.node_name}")
        self.assertIn(POD, [item.metadata.name for item in on_node.items])

    @unittest.skipUnless(POD, "no pod to run commands in")
    def test_exec(self):
        command = ["/usr/bin/python3", "-c", "import sys; print(input()); print('seen', file=sys.stderr); sys.exit(3)"]
        session = stream.stream(
            self.core.connect_get_namespaced_pod_exec,
            POD,
            NAMESPACE,
            command=command,
            stdin=True,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        session.write_stdin("hello\n")
        session.run_forever(timeout=LIMIT)
        self.assertEqual((session.read_stdout(), session.read_stderr()), ("hello\n", "seen\n"))
        self.assertEqual(session.returncode, 3)


if __name__ == "__main__":
    unittest.main()
