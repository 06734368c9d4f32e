/** Which models to ask, and what for. */
import { MOST_INSTANCES, type Model, type Options as Values } from "./service";

interface Props {
  models: Model[]; // all that are served
  selected: Model[];
  onSelect: (names: string[]) => void;
  options: Values;
  onOptions: (options: Values) => void;
}

export function Options({ models, selected, onSelect, options, onOptions }: Props) {
  const canCount = selected.some(({ several }) => several);
  const canWarm = selected.some(({ heatmaps }) => heatmaps);
  return (
    <>
      {models.length > 1 && (
        <fieldset className="chips">
          <legend>Models to ask</legend>
          {models.map((model) => (
            <label key={model.name}>
              <input
                type="checkbox"
                checked={selected.includes(model)}
                onChange={({ target }) => {
                  const others = selected.map(({ name }) => name).filter((name) => name !== model.name);
                  onSelect(target.checked ? [...others, model.name] : others);
                }}
              />
              {model.name}
              <small>
                {model.several && "several "}
                {model.gives}
              </small>
            </label>
          ))}
        </fieldset>
      )}
      {(canCount || canWarm) && (
        <div className="options">
          {canCount && (
            <label>
              At most
              <input
                type="number"
                inputMode="numeric"
                min={1}
                max={MOST_INSTANCES}
                placeholder="all"
                value={options.maxInstances ?? ""}
                onChange={({ target: { valueAsNumber: value } }) =>
                  onOptions({
                    ...options,
                    maxInstances: value >= 1 && value <= MOST_INSTANCES ? Math.round(value) : null,
                  })
                }
              />
              for each expression
            </label>
          )}
          {canWarm && (
            <label>
              <input
                type="checkbox"
                checked={options.heatmap}
                onChange={({ target }) => onOptions({ ...options, heatmap: target.checked })}
              />
              Show where it looked
            </label>
          )}
        </div>
      )}
    </>
  );
}
