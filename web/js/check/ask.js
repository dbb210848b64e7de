// Questions to the pack's routes in the running ComfyUI. Nothing else is asked of any network.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";

export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

// The answer as an object; {error} if there is none.
export async function ask(route, question) {
  try {
    const response = await api.fetchApi(`/pcm/${route}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
    });
    return response.ok ? await response.json() : { error: `${response.status}` };
  } catch (error) {
    return { error: String(error) };
  }
}
