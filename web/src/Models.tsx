/** The models being served, with their figures on held-out data as they report them. */
import { givesOf, type Model } from "./service";

export function Models({ models }: { models: Model[] }) {
  return (
    <div className="models">
      {models.map((model) => (
        <details key={model.name}>
          <summary>
            <b>{model.name}</b> version {model.version}
            {model.default && models.length > 1 && ", default"}
            {!model.ready && ", not ready"}
          </summary>
          <p>
            Gives {givesOf(model)}.{model.knows && ` Knows: ${model.knows}`}
          </p>
          <Figures evaluation={model.evaluation} />
          <p className="digest">{model.digest}</p>
        </details>
      ))}
    </div>
  );
}

/** A column for each set, a row for each figure that is one number. */
function Figures({ evaluation }: { evaluation: Model["evaluation"] }) {
  const sets = Object.entries(evaluation as Record<string, Record<string, unknown>>);
  const figures = new Set(sets.flatMap(([, values]) => Object.keys(values).filter((name) => isNumber(values[name]))));
  if (!figures.size) return <p>No figures are recorded.</p>;
  return (
    <div className="scrolls" tabIndex={0} role="region" aria-label="Figures">
      <table>
        <caption>On held-out data</caption>
        <thead>
          <tr>
            <td />
            {sets.map(([set]) => (
              <th key={set} scope="col">
                {set.replaceAll("_", " ")}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {[...figures].map((name) => (
            <tr key={name}>
              <th scope="row">{name.replaceAll("_", " ")}</th>
              {sets.map(([set, values]) => (
                <td key={set}>{formatted(values[name])}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const isNumber = (value: unknown) => typeof value === "number";

function formatted(value: unknown): string {
  if (typeof value !== "number") return "";
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(3);
}
