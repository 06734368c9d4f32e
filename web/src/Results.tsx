/** A row for each expression: what it looks like, what each model found, how sure it is, how well it fits the true box. */
import { colour, placement, viewOf } from "./boxes";
import type { Picture } from "./pictures";
import { ms } from "./Timings";
import {
  CUT,
  extentOf,
  isCut,
  responsesOf,
  truthKey,
  verdict,
  type Place,
  type Question,
  type Result,
  type Target,
  type Truths,
} from "./questions";

const SHORT = 120; // characters of a model's text that are shown without being asked for

interface Props {
  question: Question;
  results: Result[][];
  truths: Truths;
  active: Target | null;
  onActive: (target: Target | null) => void;
  zoomed: Target | null;
  onZoom: (target: Target | null) => void;
  drawing: number | null;
  onDraw: (expression: number | null) => void;
  onForget: (expression: string) => void;
}

export function Results(props: Props) {
  const { question, results, truths, active, onActive, zoomed, onZoom, drawing, onDraw, onForget } = props;
  const isComparing = question.models.length > 1;
  const found = results.filter((row) => row.some(({ present }) => present)).length;
  return (
    <div>
      <h2 className="found">
        {found} of {results.length} found
        <span>
          {responsesOf(question)
            .map(({ timings_ms }) => ms(timings_ms.total))
            .join(" and ")}
        </span>
      </h2>
      <ol className="results" aria-label="Results">
        {question.expressions.map((expression, index) => {
          const row = results[index]!;
          const isThere = row.some(({ present }) => present);
          const truth = truths[truthKey(question.picture, expression)];
          const bests = row.flatMap(({ places }) => places.slice(0, 1));
          const all = { expression: index };
          const isZoomed = zoomed !== null && isSame(zoomed, all);
          return (
            <li
              key={index}
              className={[active?.expression === index && "active", !isThere && "absent"].filter(Boolean).join(" ")}
              onPointerEnter={() => onActive(all)}
              onPointerLeave={() => onActive(null)}
              onFocus={() => onActive(all)}
              onBlur={() => onActive(null)}
            >
              <button
                className="crop"
                aria-label={`Look closely at ${expression}`}
                aria-pressed={isZoomed}
                disabled={!bests.length}
                onClick={() => onZoom(isZoomed ? null : all)}
              >
                <Crop picture={question.picture} places={bests} />
              </button>
              <div className="finding">
                <h3>{expression}</h3>
                {row.map((result) => (
                  <Finding
                    key={result.model.name}
                    result={result}
                    active={active}
                    onActive={onActive}
                    zoomed={zoomed}
                    onZoom={onZoom}
                    showsModel={isComparing}
                  />
                ))}
              </div>
              <button
                className="quiet"
                aria-label={`${truth ? "Remove" : "Draw"} the true box of ${expression}`}
                aria-pressed={drawing === index}
                title={truth ? "Remove the true box" : "Draw the true box to see the IoU"}
                onClick={() => (truth ? onForget(expression) : onDraw(drawing === index ? null : index))}
              >
                <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
                  <path
                    d={
                      truth ? "M5 5h14v14H5zM9 9l6 6M15 9l-6 6" : "M5 9V5h4M15 5h4v4M19 15v4h-4M9 19H5v-4M12 9v6M9 12h6"
                    }
                  />
                </svg>
              </button>
            </li>
          );
        })}
      </ol>
    </div>
  );
}

interface FindingProps extends Pick<Props, "active" | "onActive" | "zoomed" | "onZoom"> {
  result: Result;
  showsModel: boolean;
}

/** What one model found. */
function Finding({ result, showsModel, active, onActive, zoomed, onZoom }: FindingProps) {
  const { model, answer, places, colourIndex, present } = result;
  const several = places.filter(({ present, rank }) => present && rank !== null);
  const score = answer.score?.toFixed(2);
  return (
    <>
      <p className="score" data-model={model.name}>
        <i className="swatch" style={{ background: present ? colour(colourIndex) : undefined }} />
        {showsModel && <span className="model">{model.name}</span>}
        {!present || several.length > 0 ? (
          <span>
            {verdict(result)} {!present && score}
          </span>
        ) : (
          score && <span title="how well the model expects its answer to fit">{score}</span>
        )}
        {isCut(answer) && <b>{CUT}</b>}
        {places.map(({ fit, rank }) => rank === null && fit !== null && <b key={fit}>{fit}</b>)}
      </p>
      {several.length > 0 && (
        <ol className="places" aria-label={`Places of ${answer.expression}${showsModel ? ` by ${model.name}` : ""}`}>
          {several.map((place) => {
            const isZoomed = zoomed !== null && isSame(zoomed, place.target);
            return (
              <li key={place.rank}>
                <button
                  className={active && isSame(active, place.target) ? "active" : ""}
                  aria-label={labelOf(place)}
                  aria-pressed={isZoomed}
                  onClick={() => onZoom(isZoomed ? null : place.target)}
                  onPointerEnter={() => onActive(place.target)}
                  onPointerLeave={() => onActive({ expression: place.target.expression })}
                  onFocus={(event) => {
                    onActive(place.target);
                    event.stopPropagation(); // the row would say: all of them
                  }}
                >
                  <b>{place.rank}</b> {place.referent.score?.toFixed(2)} {place.fit}
                </button>
              </li>
            );
          })}
        </ol>
      )}
      {answer.text && <Text text={answer.text} />}
    </>
  );
}

const labelOf = ({ referent, rank, fit }: Place) =>
  [`Look closely at ${referent.expression}, place ${rank}`, referent.score?.toFixed(2), fit].filter(Boolean).join(" ");

/** What a model wrote; opened by hand where it is long. */
function Text({ text }: { text: string }) {
  if (text.length <= SHORT) return <p className="text">{text}</p>;
  return (
    <details className="text">
      <summary>{text.slice(0, SHORT)}…</summary>
      {text.slice(SHORT)}
    </details>
  );
}

const isSame = (a: Target, b: Target) => a.expression === b.expression && a.model === b.model && a.rank === b.rank;

function Crop({ picture, places }: { picture: Picture; places: Place[] }) {
  const extent = extentOf(places, picture);
  if (!extent) return null;
  return <img src={picture.url} alt="" style={placement(viewOf(extent, picture, 1), picture)} />;
}
