/** A row for each expression: its words and, after asking, a small picture, and for each model what it found, its score
 * and how well it fits the true box. */
import { useEffect, useRef, type Dispatch, type KeyboardEvent } from "react";
import { colour, placement, viewOf } from "./boxes";
import type { Picture } from "./pictures";
import {
  CUT,
  extentOf,
  isCut,
  isThere,
  placesAt,
  truthKey,
  verdict,
  type Place,
  type Question,
  type Result,
  type Target,
  type Truths,
} from "./questions";
import type { Action } from "./state";

const SHORT = 120; // characters of a model's text that are shown at first
const CLOSE = 1.3; // sides of a small picture of a place, in sides of its box

interface Props {
  rows: string[];
  examples: string[]; // shown in empty rows
  question: Question | null;
  results: Result[][];
  truths: Truths;
  active: Target | null;
  zoomed: Target | null;
  drawing: string | null;
  onZoom: (target: Target | null) => void;
  onSubmit: () => void;
  dispatch: Dispatch<Action>;
}

export function Rows(props: Props) {
  const { rows, examples, question, results, truths, active, zoomed, drawing, onZoom, onSubmit, dispatch } = props;
  const list = useRef<HTMLOListElement>(null);
  const focused = useRef<number>(null); // the row to go to when it is there
  useEffect(() => {
    if (focused.current === null) return;
    list.current?.querySelectorAll("textarea")[focused.current]?.focus();
    focused.current = null;
  }, [rows.length]);
  const add = () => {
    focused.current = rows.length;
    dispatch({ type: "added", text: "" });
  };
  const remove = (row: number, next: number) => {
    focused.current = next;
    dispatch({ type: "removed", row });
  };
  const press = (event: KeyboardEvent, row: number) => {
    if (event.nativeEvent.isComposing) return;
    if (event.key === "Backspace" && !rows[row] && rows.length > 1) remove(row, Math.max(0, row - 1));
    else if (event.key !== "Enter") return;
    else if (event.shiftKey) add();
    else onSubmit();
    event.preventDefault();
  };
  return (
    <>
      <ol className="rows" aria-label="Expressions" ref={list}>
        {rows.map((text, row) => {
          const index = question?.expressions.indexOf(text.trim()) ?? -1;
          const found = index < 0 ? [] : results[index]!;
          const target = { expression: index };
          const isZoomed = zoomed !== null && isSame(zoomed, target);
          const truth = question && index >= 0 ? truths[truthKey(question.picture, text.trim())] : undefined;
          const places = placesAt(results, target);
          const classes = [
            found.length > 0 && "answered",
            active && active.expression === index && "active",
            found.length > 0 && !found.some(isThere) && "absent",
          ];
          const pointing = (to: Target | null) => found.length > 0 && dispatch({ type: "pointed", target: to });
          return (
            <li
              key={row}
              className={classes.filter(Boolean).join(" ")}
              onPointerEnter={() => pointing(target)}
              onPointerLeave={() => pointing(null)}
              onFocus={() => pointing(target)}
              onBlur={() => pointing(null)}
            >
              {question && found.length > 0 && (
                <button
                  type="button"
                  className="crop"
                  aria-label={`Look closely at ${text.trim()}`}
                  aria-pressed={isZoomed}
                  disabled={!places.length}
                  onClick={() => onZoom(isZoomed ? null : target)}
                >
                  <Crop picture={question.picture} places={places} />
                </button>
              )}
              <div className="finding">
                <textarea
                  rows={1}
                  value={text}
                  aria-label={rows.length > 1 ? `What to look for, ${row + 1}` : "What to look for"}
                  placeholder={row < examples.length ? `for example: ${examples[row]}` : ""}
                  enterKeyHint="search"
                  autoCapitalize="none"
                  spellCheck={false}
                  onChange={({ target: { value } }) => {
                    const added = value.trim().split("\n").length - 1;
                    if (added) focused.current = row + added;
                    dispatch({ type: "typed", row, text: value });
                  }}
                  onKeyDown={(event) => press(event, row)}
                />
                {found.map((result) => (
                  <Finding
                    key={result.model.name}
                    result={result}
                    active={active}
                    zoomed={zoomed}
                    onZoom={onZoom}
                    dispatch={dispatch}
                    showsModel={question!.models.length > 1}
                  />
                ))}
              </div>
              {found.length > 0 && (
                <button
                  type="button"
                  className="quiet"
                  aria-label={`${truth ? "Remove" : "Draw"} the true box of ${text.trim()}`}
                  aria-pressed={drawing === text.trim()}
                  title={truth ? "Remove the true box" : "Draw the true box to see how well the answer fits"}
                  onClick={() =>
                    truth
                      ? dispatch({ type: "forgot", expression: text.trim() })
                      : dispatch({ type: "drawing", expression: drawing === text.trim() ? null : text.trim() })
                  }
                >
                  <Icon
                    path={
                      truth ? "M5 5h14v14H5zM9 9l6 6M15 9l-6 6" : "M5 9V5h4M15 5h4v4M19 15v4h-4M9 19H5v-4M12 9v6M9 12h6"
                    }
                  />
                </button>
              )}
              {rows.length > 1 && (
                <button
                  type="button"
                  className="quiet"
                  aria-label={`Remove ${text.trim() || "the empty row"}`}
                  onClick={() => remove(row, Math.min(row, rows.length - 2))}
                >
                  <Icon path="M7 7l10 10M17 7L7 17" />
                </button>
              )}
            </li>
          );
        })}
      </ol>
      <button type="button" className="add" onClick={add}>
        <span aria-hidden="true">+</span> Add an expression
      </button>
    </>
  );
}

function Icon({ path }: { path: string }) {
  return (
    <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true">
      <path d={path} />
    </svg>
  );
}

interface FindingProps extends Pick<Props, "active" | "zoomed" | "onZoom" | "dispatch"> {
  result: Result;
  showsModel: boolean;
}

/** What one model found. */
function Finding({ result, showsModel, active, zoomed, onZoom, dispatch }: FindingProps) {
  const { model, answer, places, colourIndex, present } = result;
  const several = places.filter((place) => isThere(place) && place.rank !== null);
  const single = places.find((place) => isThere(place) && place.rank === null);
  const score = answer.score?.toFixed(2);
  return (
    <>
      <p className="score" data-model={model.name}>
        <b className="number" style={present ? { background: colour(colourIndex) } : undefined}>
          {single && <span aria-hidden="true">{single.number}</span>}
        </b>
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
                  type="button"
                  className={active && isSame(active, place.target) ? "active" : ""}
                  aria-label={labelOf(place)}
                  aria-pressed={isZoomed}
                  onClick={() => onZoom(isZoomed ? null : place.target)}
                  onPointerEnter={() => dispatch({ type: "pointed", target: place.target })}
                  onPointerLeave={() => dispatch({ type: "pointed", target: { expression: place.target.expression } })}
                  onFocus={(event) => {
                    dispatch({ type: "pointed", target: place.target });
                    event.stopPropagation(); // the row would say: all of them
                  }}
                >
                  <b>{place.number}</b> {place.referent.score?.toFixed(2)} {place.fit}
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

const labelOf = ({ referent, number, fit }: Place) =>
  [`Look closely at ${referent.expression}, place ${number}`, referent.score?.toFixed(2), fit]
    .filter(Boolean)
    .join(" ");

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

/** The places, outlined: two that overlap look different. */
function Crop({ picture, places }: { picture: Picture; places: Place[] }) {
  const extent = extentOf(places, picture);
  if (!extent) return null;
  const view = viewOf(extent, picture, 1, CLOSE);
  return (
    <>
      <img src={picture.url} alt="" style={placement(view, picture)} />
      <svg viewBox={`${view[0]} ${view[1]} ${view[2] - view[0]} ${view[3] - view[1]}`} aria-hidden="true">
        {places.map(({ box, point, colourIndex, number, present }) => {
          const stroke = present ? colour(colourIndex) : "#fff";
          if (!box)
            return <circle key={number} cx={point![0]} cy={point![1]} r={(view[2] - view[0]) / 12} stroke={stroke} />;
          const [x1, y1, x2, y2] = box;
          const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
          return (
            <g key={number}>
              <rect {...place} stroke="#000" strokeWidth={4} />
              <rect {...place} stroke={stroke} strokeWidth={2} />
            </g>
          );
        })}
      </svg>
    </>
  );
}
