/** A row for each expression: what it looks like, how sure each model is, how well it fits the true box. */
import { around, colour, placement, viewOf, type Box } from "./boxes";
import type { Picture } from "./pictures";
import { ms } from "./Timings";
import { answersOf, truthKey, type Question, type Result, type Truths } from "./questions";

interface Props {
  question: Question;
  results: Result[][];
  truths: Truths;
  active: number | null;
  onActive: (expression: number | null) => void;
  zoomed: number | null;
  onZoom: (expression: number | null) => void;
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
          {answersOf(question)
            .map(({ timings_ms }) => ms(timings_ms.total))
            .join(" and ")}
        </span>
      </h2>
      <ol className="results" aria-label="Results">
        {question.expressions.map((expression, index) => {
          const row = results[index]!;
          const isThere = row.some(({ present }) => present);
          const truth = truths[truthKey(question.picture, expression)];
          return (
            <li
              key={index}
              className={[active === index && "active", !isThere && "absent"].filter(Boolean).join(" ")}
              onPointerEnter={() => onActive(index)}
              onPointerLeave={() => onActive(null)}
              onFocus={() => onActive(index)}
              onBlur={() => onActive(null)}
            >
              <button
                className="crop"
                aria-label={`Look closely at ${expression}`}
                aria-pressed={zoomed === index}
                onClick={() => onZoom(zoomed === index ? null : index)}
              >
                <Crop picture={question.picture} boxes={row.map(({ box }) => box)} />
              </button>
              <div className="finding">
                <h3>{expression}</h3>
                {row.map((result) => (
                  <Score key={result.model.name} result={result} showsModel={isComparing} />
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

function Score({ result, showsModel }: { result: Result; showsModel: boolean }) {
  const { model, found, colourIndex, present, iou } = result;
  return (
    <p className="score" data-model={model.name}>
      <i className="swatch" style={{ background: present ? colour(colourIndex) : undefined }} />
      {showsModel && <span className="model">{model.name}</span>}
      {present ? (
        found.score !== null && <span title="how well the model expects its box to fit">{found.score.toFixed(2)}</span>
      ) : (
        <span>not in the picture {found.score?.toFixed(2)}</span>
      )}
      {iou !== null && <b className="iou">IoU {iou.toFixed(2)}</b>}
    </p>
  );
}

function Crop({ picture, boxes }: { picture: Picture; boxes: Box[] }) {
  if (!boxes.length) return null;
  const view = viewOf(around(boxes), picture, 1);
  return <img src={picture.url} alt="" style={placement(view, picture)} />;
}
