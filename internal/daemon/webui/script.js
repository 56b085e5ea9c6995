"use strict";
// Replaces the page by its newest version. Without this script it shows what was so when
// it was loaded.
async function refresh() {
	try {
		const answer = await fetch(location.href, { cache: "no-store" });
		if (!answer.ok) throw new Error(answer.status);
		const next = new DOMParser().parseFromString(await answer.text(), "text/html");
		document.querySelector("main").replaceWith(next.querySelector("main"));
	} catch (e) {
		document.querySelector("#stale").textContent = "twilld does not answer since then.";
	}
}
setInterval(() => { if (!document.hidden) refresh(); }, 5000);
