/** Calls the gateway: its models, its answers, and its problems in plain words. */
import type { components } from "./api";

type Schemas = components["schemas"];
export type GroundResponse = Schemas["GroundResponse"];
export type Answer = Schemas["Answer"];
export type Referent = Schemas["Referent"];
export type Model = Schemas["ServedModel"];
export type Metadata = Schemas["Metadata"];
type Problem = Schemas["Problem"];

/** What went wrong, for a person. */
export interface Failure {
  title: string;
  detail: string;
  remedy: string;
  retryAfterS: number | null; // null: the same request would fail again
  needsKey: boolean;
  requestId: string | null;
}

export class ServiceError extends Error {
  constructor(readonly failure: Failure) {
    super(failure.detail);
  }
}

const UNREACHABLE: Failure = {
  title: "No answer from the service",
  detail: `Nothing answered at ${location.origin}: it is not running, or the connection to it is lost.`,
  remedy: "Start it with make serve or referent serve; this page reconnects automatically.",
  retryAfterS: 0,
  needsKey: false,
  requestId: null,
};

const KEY = "referent-key"; // in sessionStorage: gone with the tab

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";
export const keepApiKey = (key: string) => sessionStorage.setItem(KEY, key.trim());

const ONE = { boxes: "one box", points: "one point", "boxes or points": "one box or point" };

/** What the model answers with, in words. */
export const givesOf = ({ gives, several }: Model) =>
  `${several ? `any number of ${gives}` : ONE[gives]} for each expression`;

export const models = async () => (await ask<Schemas["ServedModels"]>("v1/models")).models;
export const metadata = () => ask<Metadata>("v1/metadata");

export const MOST_INSTANCES = 64;

/** What may be asked for besides the expressions; models ignore options that don't apply to them. */
export interface Options {
  maxInstances: number | null; // of each expression; null: the model's own limit
  heatmap: boolean;
}

/** Where in the image file is what each expression refers to? Throws ServiceError, and AbortError by the signal. */
export function ground(
  image: Blob,
  name: string,
  expressions: string[],
  model: string,
  { maxInstances, heatmap }: Options,
  signal: AbortSignal,
) {
  const body = new FormData();
  body.append("image", image, name);
  body.append("model", model);
  for (const expression of expressions) body.append("expression", expression);
  if (maxInstances !== null) body.append("max_instances", String(maxInstances));
  if (heatmap) body.append("heatmap", "true");
  return ask<GroundResponse>("v1/ground", { method: "POST", body, signal });
}

async function ask<T>(path: string, init: RequestInit = {}): Promise<T> {
  const key = apiKey();
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers: key ? { Authorization: `Bearer ${key}` } : {} });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ServiceError(UNREACHABLE);
  }
  if (!response.ok) throw new ServiceError(await failureOf(response));
  return (await response.json()) as T;
}

async function failureOf(response: Response): Promise<Failure> {
  const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  const problem: Partial<Problem> = isProblem ? ((await response.json()) as Problem) : {};
  const retryAfterS = problem.retryable ? Number(response.headers.get("Retry-After") ?? 1) : null;
  return {
    title: problem.title ?? `The service answered ${response.status} ${response.statusText}`,
    detail: problem.detail ?? "There is no explanation: something between this page and the service may have answered.",
    remedy: remedy(response.status, retryAfterS),
    retryAfterS,
    needsKey: response.status === 401 || response.status === 403,
    requestId: problem.request_id ?? null,
  };
}

function remedy(status: number, retryAfterS: number | null): string {
  if (retryAfterS !== null) return "Your picture and words are fine. The same request may succeed soon.";
  if (status === 401 || status === 403) return "Type the key that you got from the service's operator.";
  if (status < 500) return "Change the picture or the words, then ask again.";
  return "Report this to the service's operator, with the request's id.";
}
