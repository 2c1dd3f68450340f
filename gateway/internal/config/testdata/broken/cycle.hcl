driver "a" {
  base = "b"
}
driver "b" {
  base = "a"
}
