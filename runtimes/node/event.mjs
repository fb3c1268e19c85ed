// CloudEvents over HTTP: one event in, one event out, in binary or structured mode.
//
// Owns: the value that `onEvent` sees and the HTTP binding of CloudEvents 1.0. Must not know a server.
// An event is a plain object: its attributes by name, and `data`: the parsed value for JSON, a string for text, a Buffer
// for anything else, undefined when there is none.

import { randomUUID } from 'node:crypto';

const STRUCTURED = 'application/cloudevents';
const REQUIRED = ['id', 'source', 'type'];
const KNOWN = ['specversion', ...REQUIRED, 'subject', 'time', 'datacontenttype', 'dataschema'];
const NAME = /^[a-z0-9]+$/;
const TIME = /^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$/;
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;

/** The sender's fault; the message says what. */
export class Malformed extends Error {}

export function isEvent(headers) {
  return 'ce-specversion' in headers || mediaType(headers['content-type']).startsWith(STRUCTURED);
}

export function parse(headers, body) {
  const type = mediaType(headers['content-type']);
  if (type.startsWith(`${STRUCTURED}-batch`)) throw new Malformed('a batch of events is not supported; send them one by one');
  return type.startsWith(STRUCTURED) ? parseStructured(type, body) : parseBinary(headers, body);
}

function parseBinary(headers, body) {
  if (!('ce-specversion' in headers)) {
    throw new Malformed(
      'this function receives CloudEvents: send the attributes as ce-* headers (ce-specversion is missing), ' +
        'or the whole event as application/cloudevents+json',
    );
  }
  const event = {};
  for (const [name, value] of Object.entries(headers)) if (name.startsWith('ce-')) event[name.slice(3)] = unescape(value);
  if ('content-type' in headers) event.datacontenttype = headers['content-type'];
  check(event);
  event.data = decode(event.datacontenttype, body);
  return event;
}

function parseStructured(type, body) {
  if (type !== STRUCTURED && type !== `${STRUCTURED}+json`) {
    throw new Malformed(`the event format ${type} is not supported; use application/cloudevents+json`);
  }
  let members;
  try {
    members = JSON.parse(body.toString('utf8'));
  } catch (error) {
    throw new Malformed(`the body is not JSON (${error.message})`);
  }
  if (typeof members !== 'object' || members === null || Array.isArray(members)) {
    throw new Malformed('the body is not a JSON object');
  }
  const { data, data_base64: encoded, ...rest } = members;
  if (data !== undefined && encoded !== undefined) throw new Malformed('both data and data_base64 are there');
  const event = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null));
  check(event);
  event.data = data;
  if (encoded !== undefined && encoded !== null) {
    if (typeof encoded !== 'string' || !BASE64.test(encoded)) throw new Malformed('data_base64 is not base64');
    event.data = decode(event.datacontenttype, Buffer.from(encoded, 'base64'));
  }
  return event;
}

function check(event) {
  if (event.specversion === undefined) throw new Malformed('specversion is missing');
  if (event.specversion !== '1.0') throw new Malformed(`specversion '${event.specversion}' is not supported; it must be 1.0`);
  for (const name of REQUIRED) if (!(name in event)) throw new Malformed(`${name} is missing`);
  for (const [name, value] of Object.entries(event)) {
    if (!NAME.test(name)) throw new Malformed(`the attribute name '${name}' is not made of a-z and 0-9`);
    if (KNOWN.includes(name) && (typeof value !== 'string' || value === '')) {
      throw new Malformed(`${name} is not a non-empty string`);
    }
    if (name === 'data') throw new Malformed("the attribute name 'data' is reserved");
    if (!['string', 'boolean', 'number'].includes(typeof value)) throw new Malformed(`the attribute ${name} is an object`);
  }
  if ('time' in event && !TIME.test(event.time)) throw new Malformed(`time '${event.time}' is not an RFC 3339 time`);
}

function decode(contentType, raw) {
  if (raw.length === 0) return undefined;
  const type = mediaType(contentType);
  try {
    if (isJson(type)) return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(raw));
    if (type.startsWith('text/')) return new TextDecoder(charset(contentType), { fatal: true }).decode(raw);
  } catch (error) {
    throw new Malformed(`the data is not ${type} (${error.message})`);
  }
  return raw;
}

/** The response for what a handler returned: nothing, or one event in binary mode. */
export function toResponse(result) {
  if (result === undefined || result === null) return { status: 204, headers: {}, content: undefined };
  if (typeof result !== 'object' || Array.isArray(result) || Buffer.isBuffer(result)) {
    throw new TypeError(`onEvent returned a ${typeof result}; return nothing or an event as an object`);
  }
  const { data, datacontenttype, ...attributes } = result;
  if (!attributes.type) throw new TypeError('onEvent returned an event without a type');
  const complete = {
    id: randomUUID(),
    source: `/functions/${process.env.K_SERVICE || 'unnamed'}`,
    time: new Date().toISOString(),
    ...Object.fromEntries(Object.entries(attributes).filter(([, value]) => value !== undefined && value !== null)),
    specversion: '1.0',
  };
  const { contentType, content } = encode(datacontenttype, data);
  const headers = { 'content-length': content.length };
  if (contentType) headers['content-type'] = contentType;
  for (const [name, value] of Object.entries(complete)) {
    if (!NAME.test(name)) throw new TypeError(`onEvent returned the attribute name '${name}'; use a-z and 0-9`);
    headers[`ce-${name}`] = escape(value instanceof Date ? value.toISOString() : String(value));
  }
  return { status: 200, headers, content };
}

function encode(contentType, data) {
  if (data === undefined || data === null) return { contentType, content: Buffer.alloc(0) };
  if (data instanceof Uint8Array) return { contentType: contentType ?? 'application/octet-stream', content: Buffer.from(data) };
  if (typeof data === 'string' && !isJson(mediaType(contentType))) {
    return { contentType: contentType ?? 'text/plain; charset=utf-8', content: Buffer.from(data) };
  }
  return { contentType: contentType ?? 'application/json', content: Buffer.from(JSON.stringify(data)) };
}

// Printable ASCII but for the space, the quote and the per cent sign stands for itself.
function escape(text) {
  return text.replace(/[^\x21\x23\x24\x26-\x7e]+/gu, (part) =>
    Array.from(Buffer.from(part), (byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''),
  );
}

function unescape(value) {
  const plain = /^".*"$/.test(value) ? value.slice(1, -1).replace(/\\(.)/g, '$1') : value;
  // Byte by byte: a sequence that is no UTF-8 must not be an error.
  const bytes = plain.replace(/%([0-9A-Fa-f]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
  return Buffer.from(bytes, 'latin1').toString('utf8');
}

function mediaType(contentType) {
  return (contentType ?? '').split(';', 1)[0].trim().toLowerCase();
}

function charset(contentType) {
  return /charset="?([\w-]+)/i.exec(contentType ?? '')?.[1] ?? 'utf-8';
}

function isJson(type) {
  return type === 'application/json' || type === 'text/json' || type.endsWith('+json');
}
