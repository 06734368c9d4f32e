/** The lowest score with which an object counts as found. */
import type { Model } from "./service";

interface Props {
  models: Model[]; // that were asked
  value: number | null; // null: each model's own
  onChange: (value: number | null) => void;
}

export function Threshold({ models, value, onChange }: Props) {
  const own = [...new Set(models.flatMap((model) => model.present_threshold ?? []))];
  if (!own.length) return null; // models trained without scores
  const owns = own.map((each) => each.toFixed(2)).join(" and ");
  return (
    <div className="threshold">
      <label htmlFor="threshold">
        Lowest score that counts as found: <b>{value?.toFixed(2) ?? owns}</b>
      </label>
      {value === null ? (
        <span>{own.length === 1 ? "the model’s own" : "the models’ own"}</span>
      ) : (
        <button className="quiet" onClick={() => onChange(null)}>
          Reset to {owns}
        </button>
      )}
      <input
        id="threshold"
        type="range"
        min="0"
        max="1"
        step="0.01"
        value={value ?? own[0]}
        onChange={({ target }) => onChange(target.valueAsNumber)}
      />
    </div>
  );
}
