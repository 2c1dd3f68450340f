store "postgres" {
  url = env("NOT_SET")
}
driver "native" {}
