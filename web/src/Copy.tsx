/** The answer, or the question, for elsewhere. */
import { useState } from "react";
import { copy, FORMATS } from "./formats";
import type { Question } from "./questions";

export function Copy({ question, threshold }: { question: Question; threshold: number | null }) {
  const [copied, setCopied] = useState("");
  return (
    <div className="copy" role="group" aria-label="Copy as">
      <span aria-hidden="true">Copy as</span>
      {Object.entries(FORMATS).map(([name, format]) => (
        <button
          key={name}
          className="quiet"
          onClick={async () => {
            await copy(format(question, threshold));
            setCopied(name);
          }}
        >
          {name}
        </button>
      ))}
      <span role="status">{copied && `${copied} copied`}</span>
    </div>
  );
}
