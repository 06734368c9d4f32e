/** What the models know, and why nothing may have been found. */
import { bestGuess, type Question, type Result } from "./questions";
import { givesOf, type Model } from "./service";

const SENTENCE = 140; // characters of what a model knows that are shown at first

export function Knows({ models }: { models: Model[] }) {
  return models.map((model) => {
    const { knows, name } = model;
    const gives = `It gives ${givesOf(model)}.`;
    if (!knows)
      return (
        <p key={name} className="hint">
          Nothing is recorded about what {name} knows. {gives}
        </p>
      );
    const end = knows.length <= SENTENCE ? knows.length : knows.lastIndexOf(" ", SENTENCE);
    return (
      <div key={name} className="hint">
        <p>
          <b>{name}</b> knows {knows.slice(0, end).replace(/[.,;:\s]+$/, "")}
          {end < knows.length ? "…" : "."} {gives}
        </p>
        {end < knows.length && (
          <details>
            <summary>Everything it knows</summary>
            {knows}
          </details>
        )}
      </div>
    );
  });
}

interface NothingProps {
  question: Question;
  results: Result[][];
  threshold: number | null;
  onThreshold: (threshold: number) => void;
}

/** If no expression was found: possible reasons, and what to do. */
export function Nothing({ question, results, threshold, onThreshold }: NothingProps) {
  const best = bestGuess(results);
  const limit = threshold ?? best?.model.present_threshold ?? null;
  return (
    <div className="nothing">
      <p>
        {results.length === 1
          ? "The model found nothing that fits."
          : "The model found nothing that fits any of the expressions."}
        {best && limit !== null && (
          <>
            {" "}
            Its best score is {best.score.toFixed(2)}, for {best.expression}; the lowest score that counts as found is{" "}
            {limit.toFixed(2)}.
          </>
        )}
      </p>
      <p>Perhaps it is not in the picture. Perhaps the model does not know these words, or pictures of this kind.</p>
      <Knows models={question.models} />
      {best?.hasPlace && (
        <button type="button" onClick={() => onThreshold(0)}>
          Show its best guesses
        </button>
      )}
    </div>
  );
}
