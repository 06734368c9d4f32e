/** The form: what to look for, and which models to ask. */
import { useEffect, useRef, type KeyboardEvent } from "react";
import { expressionsOf } from "./questions";
import { givesOf, type Model } from "./service";

interface Props {
  text: string;
  onText: (text: string) => void;
  models: Model[]; // all that are served
  selected: Model[];
  onSelect: (names: string[]) => void;
  picture: string | null; // without words, a new one brings the cursor here
  isBusy: boolean;
  onSubmit: () => void;
}

export function Words({ text, onText, models, selected, onSelect, picture, isBusy, onSubmit }: Props) {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (picture && !field.current?.value) field.current?.focus({ preventScroll: true });
  }, [picture]);
  const isReady = picture !== null && expressionsOf(text).length > 0 && selected.length > 0;
  const press = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    if (isReady) onSubmit();
  };
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        onSubmit();
      }}
    >
      <label htmlFor="words">What to look for</label>
      <textarea
        id="words"
        ref={field}
        rows={3}
        value={text}
        placeholder={"the red cup\nthe person on the left"}
        aria-describedby="words-hint"
        onChange={({ target }) => onText(target.value)}
        onKeyDown={press}
      />
      <p id="words-hint" className="hint">
        One a line. <kbd>Enter</kbd> asks, <kbd>Shift</kbd> <kbd>Enter</kbd> starts a line.
      </p>
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
      {selected.map(
        (model) =>
          model.knows && (
            <p key={model.name} className="hint">
              {model.name} gives {givesOf(model)}. It knows: {model.knows}
            </p>
          ),
      )}
      <button className="primary" disabled={!isReady}>
        {isBusy ? "Looking…" : "Find"}
      </button>
    </form>
  );
}
