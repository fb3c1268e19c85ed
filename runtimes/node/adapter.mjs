// Loads a Node function and serves it; what runs inside every Node instance.
//
// Owns: finding the user's function, the server around it, readiness and the way out. Must not know any platform API,
// image or build. The surprise: the answer to a request may come after its handler has returned or failed, so a
// rejection that nobody handles is the failure of the request in flight when there is exactly one.
//
// The contract: the working directory holds the code, `DHOW_HANDLER` names an export (`default`, or `file.export`).
// Either descriptor 3 is the listening socket and one byte on descriptor 4 says that the function is loaded, or, with
// `--port`, the adapter listens on `PORT` itself once the function is loaded, so that accepting says the same. SIGTERM
// finishes what is in flight and exits 0. A function that cannot be loaded exits 1 and says why on stderr.

import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { pathToFileURL } from 'node:url';
import * as cloudevent from './event.mjs';

const LISTENER_FD = 3;
const READY_FD = 4;
// An event's body is held in memory as a whole; more than this answers 413. Everything else streams.
const MAX_EVENT = 32 * 1024 * 1024;
// The gateway closes idle connections, never the instance: otherwise one could close while a request is on its way.
const KEEP_ALIVE_MS = 3600 * 1000;
const ENTRIES = ['index.mjs', 'index.js', 'index.cjs'];

class LoadError extends Error {}

const inFlight = new Set();
let ready = false;
let stopping = false;
let exitCode = 0;
let server;

async function main() {
  const ownPort = process.argv[2] === '--port';
  process.argv.splice(2);
  process.on('SIGTERM', stop);
  process.on('SIGINT', () => {});
  const exits = (code) => {
    say(`the function exited with ${code} while it was loaded`);
    process.reallyExit(1);
  };
  const runsDry = () => {
    process.off('exit', exits);
    leave('the function waits for something that never comes while it is loaded');
  };
  process.on('exit', exits).on('beforeExit', runsDry);
  let listener;
  try {
    listener = handlerFor(await load(process.env.DHOW_HANDLER || 'default'));
  } catch (error) {
    process.off('exit', exits).off('beforeExit', runsDry);
    failToLoad(error);
    return;
  }
  process.off('exit', exits).off('beforeExit', runsDry);
  process.on('unhandledRejection', (error) => failInFlight(error));
  process.on('uncaughtException', (error) => {
    failInFlight(error);
    // Whatever threw was cut off in the middle: nothing in this process can be relied on any more.
    exitCode = 1;
    stop();
  });
  serve(listener, ownPort);
}

function serve(listener, ownPort) {
  server = http.createServer({ keepAliveTimeout: KEEP_ALIVE_MS, requestTimeout: 0 }, (req, res) => {
    inFlight.add(res);
    res.once('close', () => {
      inFlight.delete(res);
      if (stopping) server.closeIdleConnections();
    });
    if (stopping) res.shouldKeepAlive = false;
    listener(req, res).catch((error) => fail(res, error));
  });
  const port = process.env.PORT || '8080';
  server.on('error', (error) => {
    if (ownPort) say(`cannot listen on PORT=${port}: ${error.message}`);
    else say(`cannot serve on descriptor ${LISTENER_FD}: ${error.message}; the platform must pass a listener`);
    process.exit(1);
  });
  if (ownPort && !(/^\d+$/.test(port) && Number(port) < 65536)) leave(`cannot listen on PORT=${port}: it is no port`);
  server.listen(ownPort ? { port: Number(port) } : { fd: LISTENER_FD }, () => {
    ready = true;
    if (ownPort) return;
    try {
      fs.writeSync(READY_FD, '1');
      fs.closeSync(READY_FD);
    } catch (error) {
      say(`nobody waits for readiness: ${error.message}`);
    }
  });
}

function stop() {
  if (!ready) process.reallyExit(0);
  if (stopping) return;
  stopping = true;
  for (const res of inFlight) res.shouldKeepAlive = false;
  server.close(() => process.exit(exitCode));
  server.closeIdleConnections();
}

/** The module that the handler lives in, its export, and what it exports beside it. */
async function load(handler) {
  const dot = handler.lastIndexOf('.');
  const name = handler.slice(dot + 1);
  const file = dot < 0 ? entry() : firstOf(handler.slice(0, dot), ['.mjs', '.js', '.cjs']);
  const module = await import(pathToFileURL(path.resolve(file)).href);
  let main = module.default;
  // What a compiler makes of `export default` in CommonJS.
  if (main?.__esModule && main.default !== undefined) main = main.default;
  const pick = (key) => module[key] ?? (main === null || main === undefined ? undefined : main[key]);
  return { file, name, found: name === 'default' ? main : pick(name), onEvent: pick('onEvent') };
}

function entry() {
  let main;
  if (fs.existsSync('package.json')) {
    try {
      main = JSON.parse(fs.readFileSync('package.json', 'utf8')).main;
    } catch (error) {
      throw new LoadError(`package.json is not valid JSON: ${error.message}`);
    }
  }
  if (main) {
    const found = [main, `${main}.mjs`, `${main}.js`, `${main}.cjs`, ...ENTRIES.map((e) => path.join(main, e))].find(isFile);
    if (!found) throw new LoadError(`package.json names '${main}' as main, which is not there; add it or correct main`);
    return found;
  }
  const found = ENTRIES.find(isFile);
  if (!found) throw new LoadError(`there is no index.mjs or index.js in ${process.cwd()}; add one, or set main in package.json`);
  return found;
}

function firstOf(stem, endings) {
  const found = endings.map((ending) => stem + ending).find(isFile);
  if (!found) throw new LoadError(`there is no ${stem}.mjs or ${stem}.js in ${process.cwd()}; add it or set spec.handler`);
  return found;
}

function isFile(name) {
  return fs.statSync(name, { throwIfNoEntry: false })?.isFile() ?? false;
}

/** What answers a request: `(req, res) => Promise`. */
function handlerFor({ file, name, found, onEvent }) {
  if (onEvent !== undefined && typeof onEvent !== 'function') {
    throw new LoadError(`'onEvent' in ${file} is a ${typeof onEvent}; make it a function`);
  }
  const receive = onEvent && ((req, res) => serveEvent(onEvent, req, res));
  if (name === 'onEvent' && receive) return receive;
  const answer = requestHandler(found);
  if (answer && receive) return (req, res) => (cloudevent.isEvent(req.headers) ? receive(req, res) : answer(req, res));
  if (answer || receive) return answer || receive;
  const what = name === 'default' ? 'default export' : `export '${name}'`;
  throw new LoadError(
    found === undefined || found === null
      ? `${file} has no ${what}; export an object with fetch(request), or a function (req, res)`
      : `the ${what} of ${file} is neither an object with fetch(request) nor a function (req, res)`,
  );
}

function requestHandler(found) {
  if (typeof found?.fetch === 'function') return (req, res) => serveFetch((request) => found.fetch(request), req, res);
  if (typeof found !== 'function') return undefined;
  if (found.length < 2) return (req, res) => serveFetch(found, req, res);
  return async (req, res) => {
    await found(req, res);
  };
}

async function serveFetch(call, req, res) {
  const gone = new AbortController();
  res.once('close', () => {
    if (!res.writableFinished) gone.abort();
  });
  let request;
  try {
    request = toRequest(req, gone.signal);
  } catch (error) {
    return answerText(res, 400, `not a request that fetch() can take: ${error.message}`);
  }
  const response = await call(request);
  if (!isResponse(response)) {
    throw new TypeError(`fetch() returned ${describe(response)}; return a Response`);
  }
  const headers = {};
  for (const [name, value] of response.headers) if (name !== 'set-cookie') headers[name] = value;
  const cookies = response.headers.getSetCookie();
  if (cookies.length) headers['set-cookie'] = cookies;
  res.writeHead(response.status, response.statusText || undefined, headers);
  if (!response.body) return void res.end();
  try {
    await pipeline(Readable.fromWeb(response.body), res);
  } catch (error) {
    if (error.code !== 'ERR_STREAM_PREMATURE_CLOSE' && !gone.signal.aborted) throw error;
  }
}

function toRequest(req, signal) {
  const headers = new Headers();
  for (let i = 0; i < req.rawHeaders.length; i += 2) headers.append(req.rawHeaders[i], req.rawHeaders[i + 1]);
  const scheme = req.headers['x-forwarded-proto'] === 'https' ? 'https' : 'http';
  const target = req.url.startsWith('/') ? `${scheme}://${req.headers.host || 'localhost'}${req.url}` : req.url;
  const hasBody = req.method !== 'GET' && req.method !== 'HEAD';
  const body = hasBody ? Readable.toWeb(req) : undefined;
  return new Request(target, { method: req.method, headers, body, duplex: 'half', signal });
}

// By shape, since a function may bring a fetch library of its own.
function isResponse(value) {
  return typeof value?.status === 'number' && typeof value.headers?.getSetCookie === 'function';
}

async function serveEvent(onEvent, req, res) {
  const body = await readAll(req);
  if (body === undefined) {
    // A caller that is still sending would take a closing connection for a crash.
    req.resume();
    return answerText(res, 413, `the event is larger than ${MAX_EVENT >> 20} MiB`);
  }
  let event;
  try {
    event = cloudevent.parse(req.headers, body);
  } catch (error) {
    if (!(error instanceof cloudevent.Malformed)) throw error;
    return answerText(res, 400, `not a CloudEvent: ${error.message}`);
  }
  const { status, headers, content } = cloudevent.toResponse(await onEvent(event));
  res.writeHead(status, headers);
  res.end(content);
}

async function readAll(req) {
  if (Number(req.headers['content-length']) > MAX_EVENT) return undefined;
  const chunks = [];
  let size = 0;
  for await (const chunk of req.iterator({ destroyOnReturn: false })) {
    size += chunk.length;
    if (size > MAX_EVENT) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function fail(res, error) {
  console.error(stackOf(error));
  if (res.headersSent || res.destroyed) res.destroy();
  else answerText(res, 500, 'internal error');
}

function failInFlight(error) {
  if (inFlight.size === 1) return fail(inFlight.values().next().value, error);
  console.error(stackOf(error));
}

function answerText(res, status, text) {
  // What was not read of a body would be taken for the next request.
  if (!res.req.complete) res.shouldKeepAlive = false;
  res.writeHead(status, { 'content-type': 'text/plain; charset=utf-8' });
  res.end(`${text}\n`);
}

function failToLoad(error) {
  if (error instanceof LoadError) return leave(error.message);
  if (error instanceof SyntaxError) {
    // Only the runtime's own report of an uncaught error shows the line that does not parse.
    error.stack = stackOf(error);
    process.on('exit', () => {
      say(`the code is not valid JavaScript: ${error.message}`);
      // Before it adds its version as the last line.
      process.reallyExit(1);
    });
    setImmediate(() => {
      throw error;
    });
    return;
  }
  const missing = /^Cannot find (?:package|module) '([^']+)'/.exec(error?.message ?? '');
  if (missing && /MODULE_NOT_FOUND$/.test(error.code)) {
    console.error(stackOf(error));
    const isPackage = !/^[./]/.test(missing[1]);
    const todo = isPackage ? "is not installed; add it to package.json's dependencies" : 'is not there; add it';
    return leave(`the function needs '${missing[1]}', which ${todo}`);
  }
  console.error(stackOf(error));
  leave(`the function failed while it was loaded: ${error instanceof Error ? `${error.name}: ${error.message}` : error}`);
}

function leave(text) {
  say(text);
  process.exit(1);
}

/** The stack with the user's frames only. */
function stackOf(error) {
  if (typeof error?.stack !== 'string') return `not an Error: ${describe(error)}`;
  const ours = /^\s+at .*(node:|file:.*\/(adapter|event)\.mjs:)/;
  return error.stack
    .split('\n')
    .filter((line) => !ours.test(line))
    .join('\n');
}

function describe(value) {
  if (value === null || value === undefined) return String(value);
  return typeof value === 'object' ? `a ${value.constructor?.name ?? 'object'}` : `a ${typeof value}`;
}

function say(text) {
  fs.writeSync(2, `dhow: ${text}\n`);
}

await main();
