/** What went wrong, and what to do about it. */
import { useEffect, useState } from "react";
import { apiKey, keepApiKey, type Failure } from "./service";

interface Props {
  failure: Failure;
  model?: string | null;
  onRetry: () => void;
}

export function Notice({ failure, model = null, onRetry }: Props) {
  const { title, detail, remedy, retryAfterS, needsKey, requestId } = failure;
  const left = useCountdown(failure);
  return (
    <div className="notice" role="alert">
      <h2>{model ? `${model}: ${title}` : title}</h2>
      <p>{detail}</p>
      <p>{remedy}</p>
      {needsKey && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            keepApiKey(String(new FormData(event.currentTarget).get("key")));
            onRetry();
          }}
        >
          <label>
            Key
            <input name="key" type="password" autoComplete="off" defaultValue={apiKey()} required />
          </label>
          <button>Use it</button>
        </form>
      )}
      {retryAfterS !== null && (
        <button onClick={onRetry} disabled={left > 0}>
          {left > 0 ? `Try again in ${left} s` : "Try again"}
        </button>
      )}
      {requestId && <small>request {requestId}</small>}
    </div>
  );
}

/** Whole seconds until the failed request may be sent again. */
function useCountdown(failure: Failure): number {
  const [left, setLeft] = useState(0);
  useEffect(() => {
    const end = performance.now() + (failure.retryAfterS ?? 0) * 1000;
    const tick = () => setLeft(Math.max(0, Math.ceil((end - performance.now()) / 1000)));
    tick();
    const timer = setInterval(tick, 250);
    return () => clearInterval(timer);
  }, [failure]);
  return left;
}
