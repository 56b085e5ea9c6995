package textpage

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTextIsWrappedBelowItsBeginning(t *testing.T) {
	var p Page
	p.Text(6, "head  ", strings.TrimSpace(strings.Repeat("word ", 20)))
	want := "head  " + strings.TrimSpace(strings.Repeat("word ", 15)) + "\n      word word word word word\n"
	if p.String() != want {
		t.Errorf("got\n%swant\n%s", &p, want)
	}
}

func TestTextTakesAllColumns(t *testing.T) {
	var p Page
	p.Text(0, "", strings.Repeat("é", 39)+" "+strings.Repeat("é", 40)+" é")
	lines := strings.Split(p.String(), "\n")
	if n := utf8.RuneCountInString(lines[0]); n != Width || lines[1] != "é" {
		t.Errorf("%d columns in the first line:\n%s", n, &p)
	}
}

func TestWordWiderThanThePageStaysWhole(t *testing.T) {
	var p Page
	long := strings.Repeat("/path", 20)
	p.Text(2, "file ", "at "+long+" is gone")
	if want := "file at\n  " + long + "\n  is gone\n"; p.String() != want {
		t.Errorf("got\n%swant\n%s", &p, want)
	}
}

func TestPageDoesNotControlTheTerminal(t *testing.T) {
	var p Page
	p.Text(0, "", "\x1b[2J\rone\ntwo")
	p.Line("\x1b[2J\n")
	if want := "?[2J?one; two\n?[2J?\n"; p.String() != want {
		t.Errorf("got %q, want %q", p.String(), want)
	}
}

func TestLastColumnOfATableIsWrapped(t *testing.T) {
	var p Page
	p.Texts([][]string{{"A", "WHY"}, {"word", strings.TrimSpace(strings.Repeat("word ", 16))}, {"b", ""}})
	want := "A     WHY\nword  " + strings.TrimSpace(strings.Repeat("word ", 15)) + "\n      word\nb\n"
	if p.String() != want {
		t.Errorf("got\n%swant\n%s", &p, want)
	}
}

func TestRowsOfATableTakeSeveralLinesIfItIsTooWide(t *testing.T) {
	table := func(length int) string {
		var p Page
		p.Rows([][]string{{"A", "B", "C", "D"}, {"1", "2", strings.Repeat("x", length), "4"}}, 1, 3)
		return p.String()
	}
	for length, want := range map[int]string{
		71: "A  B  C" + strings.Repeat(" ", 72) + "D\n1  2  X  4\n",
		72: "A  B  C\n  D\n1  2  X\n  4\n",
		75: "A\n  B  C\n  D\n1\n  2  X\n  4\n",
	} {
		want = strings.ReplaceAll(want, "X", strings.Repeat("x", length))
		if got := table(length); got != want {
			t.Errorf("%d: got\n%swant\n%s", length, got, want)
		}
	}
}
