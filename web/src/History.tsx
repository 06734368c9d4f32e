/** Sample pictures, and the questions of this visit. */
import type { Sample } from "./pictures";
import type { Question } from "./questions";

interface Props {
  samples: Sample[];
  onSample: (sample: Sample) => void;
  questions: Question[];
  shownId: number | null;
  onQuestion: (question: Question) => void;
}

export function History({ samples, onSample, questions, shownId, onQuestion }: Props) {
  return (
    <nav className="strips" aria-label="Pictures">
      <h2>Samples</h2>
      <ul>
        {samples.map((sample, index) => (
          <li key={sample.name}>
            <button
              onClick={() => onSample(sample)}
              aria-label={`Sample ${index + 1}: ${sample.words.join(", ")}`}
              title={sample.words.join("\n")}
            >
              <img src={sample.url} alt="" />
            </button>
          </li>
        ))}
      </ul>
      {questions.length > 0 && (
        <>
          <h2>Asked before</h2>
          <ul>
            {questions.map((question) => (
              <li key={question.id}>
                <button
                  onClick={() => onQuestion(question)}
                  aria-label={`${question.picture.name}: ${question.expressions.join(", ")}`}
                  aria-current={question.id === shownId}
                  title={question.expressions.join("\n")}
                >
                  <img src={question.picture.url} alt="" />
                </button>
              </li>
            ))}
          </ul>
        </>
      )}
    </nav>
  );
}
