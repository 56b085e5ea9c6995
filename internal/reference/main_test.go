package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestThePageIsWhatTheCodeSays(t *testing.T) {
	want, err := page()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/reference.md is not what the code says: run \"make reference\"")
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
