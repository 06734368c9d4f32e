/** Where the time went: a bar of stages for each answer. */
import type { GroundResponse } from "./service";

export function Timings({ responses }: { responses: GroundResponse[] }) {
  const longest = Math.max(...responses.map(({ timings_ms }) => timings_ms.total));
  return (
    <div className="timings">
      {responses.map(({ model, timings_ms: { total, prefill, generation, ...stages } }) => {
        // two are parts of inference
        const parts = Object.entries(stages).filter((part): part is [string, number] => part[1] !== null);
        return (
          <div key={model}>
            <h3>
              {model} <span>{ms(total)}</span>
            </h3>
            <div className="bar" aria-hidden="true" style={{ width: `${(100 * total) / longest}%` }}>
              {parts.map(([stage, time], index) => (
                <i key={stage} data-stage={index} style={{ flexGrow: time }} />
              ))}
            </div>
            <ul>
              {parts.map(([stage, time], index) => (
                <li key={stage}>
                  <i className="swatch" data-stage={index} />
                  {stage} <span>{ms(time)}</span>
                </li>
              ))}
            </ul>
          </div>
        );
      })}
    </div>
  );
}

export const ms = (time: number) => `${time < 10 ? time.toFixed(1) : time.toFixed(0)} ms`;
