package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestThePagesAreWhatTheCodeSays(t *testing.T) {
	reference, err := page()
	if err != nil {
		t.Fatal(err)
	}
	doctor, err := findings("../doctor")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"reference.md": reference, "findings.md": doctor} {
		got, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("docs/%s is not what the code says: run \"make reference\"", name)
		}
	}
}

func TestFindingsHaveTheWordsOfDoctor(t *testing.T) {
	text, err := findings("../doctor")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| bad | … is 0: the kernel does not forward packets to pods | `sysctl -w …` |",
		"| bad | this node has no lease yet | `systemctl start twilld` |",
		"| warn | the clock is not synchronised:",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestKeysOfTheCodeAreThoseOfTheTable(t *testing.T) {
	for want, keys := range map[string][]string{
		"keys without a description: MTU":                     {"VNI", "MTU"},
		"key VNI is described, but the code does not read it": {},
	} {
		err := table(new(bytes.Buffer), keys, []entry{{key: "VNI"}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("of %v: %v, want %q", keys, err, want)
		}
	}
}
