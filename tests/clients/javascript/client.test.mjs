// What JavaScript programs do with the Kubernetes API, by the official client, against the cluster that KUBECONFIG names.
// With DHOW_TEST_POD (the name of a pod that runs) what needs one is tested, too.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { PassThrough, Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { test } from "node:test";

import * as k8s from "@kubernetes/client-node";

const namespace = "default";
const pod = process.env.DHOW_TEST_POD;
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const unique = () => `javascript-${randomUUID().slice(0, 8)}`;

const configMap = (name, data) => ({
  apiVersion: "v1",
  kind: "ConfigMap",
  metadata: { name, labels: { suite: "javascript" } },
  data,
});

const deployment = (name) => ({
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name },
  spec: {
    replicas: 0,
    selector: { matchLabels: { app: name } },
    template: {
      metadata: { labels: { app: name } },
      spec: { containers: [{ name: "c", image: "image:1", ports: [{ containerPort: 80 }] }] },
    },
  },
});

const refused = (promise, code, reason) =>
  assert.rejects(promise, (error) => {
    assert.equal(error.code, code);
    assert.equal(JSON.parse(error.body).reason, reason);
    return true;
  });

// Calls wait for the next thing that was put, in order.
const queue = () => {
  const things = [];
  const waiting = [];
  return {
    put: (thing) => (waiting.length > 0 ? waiting.shift()(thing) : things.push(thing)),
    next: () => (things.length > 0 ? things.shift() : new Promise((resolve) => waiting.push(resolve))),
  };
};

test("create, read, replace, patch, delete", async () => {
  const name = unique();
  const made = await core.createNamespacedConfigMap({ namespace, body: configMap(name, { a: "1" }) });
  await refused(core.createNamespacedConfigMap({ namespace, body: configMap(name) }), 409, "AlreadyExists");
  const read = await core.readNamespacedConfigMap({ name, namespace });
  assert.deepEqual(read, made);
  read.data = { a: "2" };
  const replaced = await core.replaceNamespacedConfigMap({ name, namespace, body: read });
  assert.notEqual(replaced.metadata.resourceVersion, made.metadata.resourceVersion);
  await refused(core.replaceNamespacedConfigMap({ name, namespace, body: made }), 409, "Conflict");
  const fieldManager = "javascript";
  for (const [strategy, body, want] of [
    [k8s.PatchStrategy.StrategicMergePatch, { data: { b: "3" } }, { a: "2", b: "3" }],
    [k8s.PatchStrategy.MergePatch, { data: { a: null } }, { b: "3" }],
    [k8s.PatchStrategy.JsonPatch, [{ op: "replace", path: "/data/b", value: "4" }], { b: "4" }],
    [k8s.PatchStrategy.ServerSideApply, configMap(name, { c: "5" }), { b: "4", c: "5" }],
    [k8s.PatchStrategy.ServerSideApply, configMap(name, { d: "6" }), { b: "4", d: "6" }],
  ]) {
    const options = k8s.setHeaderOptions("Content-Type", strategy);
    const patched = await core.patchNamespacedConfigMap({ name, namespace, body, fieldManager }, options);
    assert.deepEqual(patched.data, want, strategy);
  }
  assert.equal((await core.deleteNamespacedConfigMap({ name, namespace, dryRun: "All" })).status, "Success");
  await core.deleteNamespacedConfigMap({ name, namespace });
  await refused(core.readNamespacedConfigMap({ name, namespace }), 404, "NotFound");
});

test("lists", async () => {
  const name = unique();
  for (let i = 0; i < 5; i++) {
    const body = configMap(`${name}-${i}`);
    body.metadata.labels.one = name;
    await core.createNamespacedConfigMap({ namespace, body });
  }
  const labelSelector = `suite=javascript,one=${name}`;
  const names = [];
  let _continue;
  do {
    const page = await core.listNamespacedConfigMap({ namespace, labelSelector, limit: 2, _continue });
    names.push(...page.items.map((item) => item.metadata.name));
    _continue = page.metadata._continue;
  } while (_continue);
  assert.deepEqual(names, [0, 1, 2, 3, 4].map((i) => `${name}-${i}`));
  await core.deleteCollectionNamespacedConfigMap({ namespace, labelSelector });
  assert.equal((await core.listNamespacedConfigMap({ namespace, labelSelector })).items.length, 0);
});

test("watch", async () => {
  const name = unique();
  const { metadata } = await core.listNamespacedConfigMap({ namespace });
  const events = queue();
  const query = { resourceVersion: metadata.resourceVersion, fieldSelector: `metadata.name=${name}` };
  const watching = await new k8s.Watch(config).watch(
    `/api/v1/namespaces/${namespace}/configmaps`,
    query,
    (phase, object) => events.put([phase, object.data.a]),
    () => {},
  );
  await core.createNamespacedConfigMap({ namespace, body: configMap(name, { a: "1" }) });
  await core.replaceNamespacedConfigMap({ name, namespace, body: configMap(name, { a: "2" }) });
  await core.deleteNamespacedConfigMap({ name, namespace });
  for (const want of [["ADDED", "1"], ["MODIFIED", "2"], ["DELETED", "2"]]) {
    assert.deepEqual(await events.next(), want);
  }
  watching.abort();
});

test("informer", async () => {
  const name = unique();
  await core.createNamespacedConfigMap({ namespace, body: configMap(name, { a: "1" }) });
  const told = queue();
  const list = () => core.listNamespacedConfigMap({ namespace });
  const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list);
  for (const kind of ["add", "update", "delete"]) {
    informer.on(kind, (object) => object.metadata.name === name && told.put([kind, object.data.a]));
  }
  await informer.start();
  assert.deepEqual(await told.next(), ["add", "1"]);
  await core.replaceNamespacedConfigMap({ name, namespace, body: configMap(name, { a: "2" }) });
  assert.deepEqual(await told.next(), ["update", "2"]);
  assert.equal(informer.get(name, namespace).data.a, "2");
  await core.deleteNamespacedConfigMap({ name, namespace });
  assert.deepEqual(await told.next(), ["delete", "2"]);
  await informer.stop();
});

test("deployment", async () => {
  const name = unique();
  const body = deployment(name);
  await apps.createNamespacedDeployment({ namespace, body });
  const scale = await apps.readNamespacedDeploymentScale({ name, namespace });
  assert.equal(scale.status.selector, `app=${name}`);
  scale.spec.replicas = 0;
  assert.equal((await apps.replaceNamespacedDeploymentScale({ name, namespace, body: scale })).kind, "Scale");
  body.spec.template.spec.containers[0].image = "image:2";
  const replaced = await apps.replaceNamespacedDeployment({ name, namespace, body });
  assert.equal(replaced.spec.template.spec.containers[0].image, "image:2");
  assert.ok(replaced.metadata.creationTimestamp instanceof Date);
  await apps.deleteNamespacedDeployment({ name, namespace, propagationPolicy: "Foreground" });
});

test("objects of any kind", async () => {
  const objects = k8s.KubernetesObjectApi.makeApiClient(config);
  const source = { inline: { files: { "main.py": "def handle(request):\n    return 'ok'\n" } } };
  const kind = { apiVersion: "dhow.dev/v1alpha1", kind: "Function" };
  const [name, other] = [unique(), unique()];
  await objects.create({ ...kind, metadata: { name, namespace }, spec: { source } });
  const found = await objects.read({ ...kind, metadata: { name, namespace } });
  found.spec.timeoutSeconds = 7;
  const patch = { ...kind, metadata: { name, namespace }, spec: { timeoutSeconds: 7 } };
  const merge = k8s.PatchStrategy.MergePatch;
  const patched = await objects.patch(patch, undefined, undefined, "javascript", undefined, merge);
  assert.equal(patched.spec.timeoutSeconds, 7);
  const wrong = { ...kind, metadata: { name: other, namespace }, spec: { source, timeoutSeconds: -1 } };
  await refused(objects.create(wrong), 422, "Invalid");
  const listed = await objects.list(kind.apiVersion, kind.kind, namespace);
  assert.ok(listed.items.some((item) => item.metadata.name === name));
  await objects.delete({ ...kind, metadata: { name, namespace } });
});

test("logs", { skip: !pod }, async () => {
  const out = new PassThrough();
  const { spec } = await core.readNamespacedPod({ name: pod, namespace });
  await new k8s.Log(config).log(namespace, pod, spec.containers[0].name, out, { tailLines: 1 });
  assert.equal(typeof (await text(out)), "string");
});

test("exec", { skip: !pod }, async () => {
  const { spec } = await core.readNamespacedPod({ name: pod, namespace });
  const [out, err] = [new PassThrough(), new PassThrough()];
  const script = "import sys; print(input()); print('seen', file=sys.stderr); sys.exit(3)";
  const command = ["/usr/bin/python3", "-c", script];
  const status = await new Promise((resolve, reject) => {
    const input = Readable.from(["hello\n"]);
    const exec = new k8s.Exec(config);
    exec.exec(namespace, pod, spec.containers[0].name, command, out, err, input, false, resolve).catch(reject);
  });
  assert.deepEqual([await text(out.end()), await text(err.end())], ["hello\n", "seen\n"]);
  assert.equal(status.status, "Failure");
  assert.deepEqual(status.details.causes, [{ reason: "ExitCode", message: "3" }]);
});
