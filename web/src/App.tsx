/** The page: a picture, words, and where in the picture is what they refer to. */
import { useMemo, useRef, useState, type ReactNode } from "react";
import { clip, colour, viewOf } from "./boxes";
import { Camera } from "./Camera";
import { Copy } from "./Copy";
import { History } from "./History";
import { useEscape, useFiles, useService } from "./hooks";
import { Intake } from "./Intake";
import { Models } from "./Models";
import { Notice } from "./Notice";
import { readPicture, SAMPLES, type Picture, type Sample } from "./pictures";
import {
  expressionsOf,
  extentOf,
  failuresOf,
  placesAt,
  placesThere,
  responsesOf,
  resultsOf,
  spoken,
  truthKey,
  truthsOf,
  type Outcome,
  type Question,
  type Target,
  type Truths,
} from "./questions";
import { Results } from "./Results";
import { ground, ServiceError, type Model } from "./service";
import { Stage } from "./Stage";
import { ThemeToggle } from "./ThemeToggle";
import { Threshold } from "./Threshold";
import { Timings } from "./Timings";
import { Words } from "./Words";

const REMEMBERED = 30; // questions of the visit

export function App() {
  const { models, metadata, outage, look } = useService();
  const [chosen, setChosen] = useState<string[]>([]); // models to ask; none: the service's default
  const [picture, setPicture] = useState<Picture | null>(null);
  const [refused, setRefused] = useState(""); // why a file is no picture for the service
  const [text, setText] = useState("");
  const [questions, setQuestions] = useState<Question[]>([]); // of this visit, the latest first
  const [shownId, setShownId] = useState<number | null>(null);
  const [threshold, setThreshold] = useState<number | null>(null); // null: each model's own
  const [truths, setTruths] = useState<Truths>({});
  const [overlaid, setOverlaid] = useState(false); // compared models on one picture
  const [camera, setCamera] = useState(false);
  // of the question shown: what is pointed at, and looked at closely; the expression whose true box is being drawn
  const [active, setActive] = useState<Target | null>(null);
  const [zoomed, setZoomed] = useState<Target | null>(null);
  const [drawing, setDrawing] = useState<number | null>(null);
  const [isAsking, setAsking] = useState(false);
  const asking = useRef<AbortController>(null); // of the latest request

  const question = questions.find(({ id }) => id === shownId) ?? null;
  const results = useMemo(
    () => (question ? resultsOf(question, threshold, truths) : []),
    [question, threshold, truths],
  );
  const responses = question ? responsesOf(question) : [];
  const isComparing = question !== null && question.models.length > 1;
  const selected = useMemo(() => selectedOf(models ?? [], chosen), [models, chosen]);

  const show = (next: Picture, shown: number | null) => {
    setPicture(next);
    setRefused("");
    setShownId(shown);
    setActive(null);
    setZoomed(null);
    setDrawing(null);
  };

  /** Another picture, or question, than the one being asked about. */
  const turnTo = (next: Picture, shown: number | null) => {
    asking.current?.abort();
    show(next, shown);
  };

  const ask = async (about: Picture, text: string) => {
    asking.current?.abort();
    const { signal } = (asking.current = new AbortController());
    const id = performance.now();
    const asked: Question = { id, picture: about, expressions: expressionsOf(text), models: selected, outcomes: {} };
    setQuestions((before) => [asked, ...before.filter(isAnswered)].slice(0, REMEMBERED));
    setAsking(true);
    if (about !== picture) show(about, null);

    const settle = (name: string, outcome: Outcome) => {
      if (signal.aborted) return;
      const settled = (each: Question) => ({ ...each, outcomes: { ...each.outcomes, [name]: outcome } });
      setQuestions((all) => all.map((each) => (each.id === id ? settled(each) : each)));
    };
    let isShown = false; // the answer before stays until there is one
    await Promise.all(
      selected.map(async ({ name }) => {
        try {
          settle(name, { response: await ground(about.blob, about.name, asked.expressions, name, signal) });
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof ServiceError)) throw error;
          settle(name, { failure: error.failure });
          void look(); // the service may be gone, or serve something else
        }
        if (!isShown && !signal.aborted) show(about, id);
        isShown = true;
      }),
    );
    if (asking.current?.signal === signal) setAsking(false);
  };

  const take = async (file: File) => {
    const limit = metadata?.limits.image_bytes ?? Infinity;
    try {
      if (file.size > limit)
        throw new Error(`${file.name} has ${megabytes(file.size)}; the service takes ${megabytes(limit)} at most.`);
      turnTo(await readPicture(file, file.name), null);
    } catch (error) {
      setRefused((error as Error).message);
    }
  };

  const takeSample = async (sample: Sample) => {
    const words = sample.expressions.join("\n");
    try {
      const next = await readPicture(await (await fetch(sample.url)).blob(), sample.name);
      setText(words);
      if (selected.length) void ask(next, words);
      else turnTo(next, null);
    } catch (error) {
      setRefused(`${sample.name} can't be loaded: ${(error as Error).message}`);
    }
  };

  useFiles(take);
  useEscape(() => (drawing !== null ? setDrawing(null) : setZoomed(null)));

  const stage = (model: Model | null, caption: ReactNode, takesKeys = true) => (
    <Stage
      key={model?.name ?? ""}
      picture={picture!}
      places={placesThere(results).filter((place) => !model || place.model.name === model.name)}
      truths={question ? truthsOf(question, truths) : []}
      view={view}
      active={active}
      onActive={setActive}
      drawing={question && drawing !== null ? { expression: question.expressions[drawing]!, takesKeys } : null}
      onDrawn={(box) => {
        setTruths((all) => ({ ...all, [truthKey(picture!, question!.expressions[drawing!]!)]: clip(box, picture!) }));
        setDrawing(null);
      }}
      caption={caption}
    />
  );
  const looked = picture && zoomed && extentOf(placesAt(results, zoomed), picture);
  const view = looked && viewOf(looked, picture, picture.width / picture.height);
  const names = isComparing ? question.models.map((model, i) => <Named key={i} model={model} index={i} />) : [];

  return (
    <>
      <header>
        <h1>
          <Mark /> Referent
        </h1>
        <p className="tagline">Where in this picture is what these words refer to?</p>
        <ThemeToggle />
      </header>
      <main>
        <section className="look" aria-label="Picture">
          {outage && <Notice failure={outage} onRetry={look} />}
          {!outage && models?.length === 0 && (
            <Message>
              No model is ready yet: the service is starting, or has none. This page looks again by itself.
            </Message>
          )}
          {refused && <Message>{refused}</Message>}
          <Intake
            picture={picture}
            formats={metadata?.formats ?? []}
            isZoomed={view !== null}
            onWhole={() => setZoomed(null)}
            onFile={take}
            onCamera={() => setCamera(true)}
          >
            {picture && isComparing && !overlaid ? (
              <div className="side-by-side">
                {question.models.map((model, index) => stage(model, names[index], index === 0))}
              </div>
            ) : (
              picture && stage(null, isComparing && names)
            )}
          </Intake>
          <History
            samples={SAMPLES}
            onSample={takeSample}
            questions={questions.filter(isAnswered)}
            shownId={shownId}
            onQuestion={(before) => {
              setText(before.expressions.join("\n"));
              turnTo(before.picture, before.id);
            }}
          />
        </section>
        <section className="ask" aria-label="Question and answer">
          <Words
            text={text}
            onText={setText}
            models={models ?? []}
            selected={selected}
            onSelect={setChosen}
            picture={picture?.url ?? null}
            isBusy={isAsking}
            onSubmit={() => ask(picture!, text)}
          />
          {question &&
            !outage &&
            failuresOf(question).map(({ model, failure }) => (
              <Notice
                key={model}
                failure={failure}
                model={isComparing ? model : null}
                onRetry={() => ask(question.picture, question.expressions.join("\n"))}
              />
            ))}
          {question && responses.length > 0 && (
            <>
              <Results
                question={question}
                results={results}
                truths={truths}
                active={active}
                onActive={setActive}
                zoomed={zoomed}
                onZoom={setZoomed}
                drawing={drawing}
                onDraw={setDrawing}
                onForget={(expression) =>
                  setTruths(({ [truthKey(question.picture, expression)]: _, ...others }) => others)
                }
              />
              {isComparing && (
                <label className="check">
                  <input type="checkbox" checked={overlaid} onChange={({ target }) => setOverlaid(target.checked)} />
                  All models on one picture
                </label>
              )}
              <Threshold models={question.models} value={threshold} onChange={setThreshold} />
              <Timings responses={responses} />
              <Copy question={question} threshold={threshold} />
            </>
          )}
          <p className="visually-hidden" role="status">
            {drawing !== null
              ? "Draw the true box: drag on the picture, or use the arrow keys and Enter. Escape leaves."
              : spoken(results)}
          </p>
        </section>
      </main>
      <footer>
        {models && <Models models={models} />}
        <p>
          <a href="docs">API</a>
          {metadata && ` of ${metadata.name} ${metadata.version}`}
        </p>
      </footer>
      {camera && <Camera onFile={take} onClose={() => setCamera(false)} />}
    </>
  );
}

function Named({ model, index }: { model: Model; index: number }) {
  return (
    <span className="named">
      <i className="swatch" style={{ background: colour(index) }} />
      {model.name}
    </span>
  );
}

function Message({ children }: { children: ReactNode }) {
  return (
    <p className="notice" role="alert">
      {children}
    </p>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <path d="M4 11V4h7M21 4h7v7M28 21v7h-7M11 28H4v-7" />
      <circle cx="16" cy="16" r="4" />
    </svg>
  );
}

/** The models to ask: those chosen, or the service's default. */
function selectedOf(models: Model[], chosen: string[]): Model[] {
  const picked = models.filter(({ name }) => chosen.includes(name));
  const fallback = models.find((model) => model.default) ?? models[0];
  return picked.length || !fallback ? picked : [fallback];
}

const isAnswered = (question: Question) => responsesOf(question).length > 0;

const megabytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MB`;
