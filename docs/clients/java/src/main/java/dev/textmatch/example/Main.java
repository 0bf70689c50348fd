package dev.textmatch.example;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Value;
import com.google.protobuf.util.JsonFormat;
import dev.textmatch.v1.Condition;
import dev.textmatch.v1.DegradedReason;
import dev.textmatch.v1.Document;
import dev.textmatch.v1.FieldMatch;
import dev.textmatch.v1.FieldRange;
import dev.textmatch.v1.Filter;
import dev.textmatch.v1.MatchOptions;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.TreeMap;

/**
 * The command line of TextMatchClient.
 *
 * <pre>
 *   ingest documents.jsonl
 *   match --top-k=3 --timeout=0.5 "remove a folder" module=os "year>=2020"
 * </pre>
 */
public final class Main {
  private static final String USAGE =
      "usage: ingest FILE | match [--top-k=N] [--timeout=SECONDS] QUERY [FIELD=VALUE | FIELD>=NUMBER]";

  private Main() {}

  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2) {
      System.err.println(USAGE);
      System.exit(2);
    }
    System.setOut(new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8));
    var options =
        new TextMatchClient.Options(
            setting("TEXTMATCH_MATCHER_TARGET", "127.0.0.1:50052"),
            setting("TEXTMATCH_COLLECTION", ""),
            setting("TEXTMATCH_API_KEY", ""),
            setting("TEXTMATCH_TLS_CA", ""),
            setting("TEXTMATCH_TLS_CERT", ""),
            setting("TEXTMATCH_TLS_KEY", ""));
    var rest = List.of(arguments).subList(1, arguments.length);
    try (var client = new TextMatchClient(options)) {
      switch (arguments[0]) {
        case "ingest" -> ingest(client, Path.of(rest.get(0)));
        case "match" -> match(client, rest);
        default -> throw new IllegalArgumentException(USAGE);
      }
    } catch (TextMatchException | IllegalArgumentException | IOException error) {
      System.err.println(error);
      System.exit(1);
    }
  }

  /** Stores the documents of a file, prints how many were accepted, and waits until they are searchable. */
  private static void ingest(TextMatchClient client, Path file) throws IOException, InterruptedException {
    var counts = new TreeMap<String, Integer>();
    List.of("accepted", "unchanged", "rejected").forEach(outcome -> counts.put(outcome, 0));
    try (var lines = Files.lines(file)) {
      client.ingest(
          lines.map(Main::document).iterator(),
          result -> {
            var outcome = result.getOutcome().name().replace("INGEST_OUTCOME_", "");
            counts.merge(outcome.toLowerCase(Locale.ROOT), 1, Integer::sum);
            if (result.hasError()) {
              System.err.println(result.getId() + ": " + TextMatchException.of(result.getError()));
            }
          });
    }
    var fields = new ArrayList<String>();
    counts.forEach((outcome, count) -> fields.add("\"%s\": %d".formatted(outcome, count)));
    System.out.println("{" + String.join(", ", fields) + "}");
    client.waitUntilSearchable();
  }

  /** Prints one JSON line for each match. */
  private static void match(TextMatchClient client, List<String> arguments)
      throws IOException, InterruptedException {
    var options = MatchOptions.newBuilder().setTopK(10);
    var timeout = Duration.ofSeconds(10);
    var words = new ArrayList<String>();
    for (var argument : arguments) {
      if (argument.startsWith("--top-k=")) {
        options.setTopK(Integer.parseInt(argument.substring("--top-k=".length())));
      } else if (argument.startsWith("--timeout=")) {
        var seconds = Double.parseDouble(argument.substring("--timeout=".length()));
        timeout = Duration.ofMillis(Math.round(seconds * 1000));
      } else {
        words.add(argument);
      }
    }
    if (words.size() > 1) {
      options.setFilter(filter(words.subList(1, words.size())));
    }
    var response = client.match(words.get(0), options.build(), timeout);
    if (response.getDegraded() != DegradedReason.DEGRADED_REASON_UNSPECIFIED) {
      System.err.println("degraded: " + response.getDegraded());
    }
    var json = JsonFormat.printer().omittingInsignificantWhitespace();
    for (var one : response.getMatchesList()) {
      var document = one.getDocument();
      System.out.printf(
          Locale.ROOT,
          "{\"id\": %s, \"score\": %s, \"text\": %s, \"attributes\": %s}%n",
          json.print(Value.newBuilder().setStringValue(document.getId())),
          one.getScore(),
          json.print(Value.newBuilder().setStringValue(document.getText())),
          json.print(document.getAttributes()));
    }
  }

  /** A filter of conditions that must all hold: module=os, year>=2020. */
  private static Filter filter(List<String> conditions) {
    var filter = Filter.newBuilder();
    for (var condition : conditions) {
      var range = condition.split(">=", 2);
      var match = condition.split("=", 2);
      if (range.length == 2) {
        var within = FieldRange.newBuilder().setField(range[0]).setGte(Double.parseDouble(range[1]));
        filter.addMust(Condition.newBuilder().setRange(within));
      } else if (match.length == 2) {
        var value = Value.newBuilder().setStringValue(match[1]);
        var equals = FieldMatch.newBuilder().setField(match[0]).addValues(value);
        filter.addMust(Condition.newBuilder().setMatch(equals));
      } else {
        throw new IllegalArgumentException(condition + " must be FIELD=VALUE or FIELD>=NUMBER");
      }
    }
    return filter.build();
  }

  private static Document document(String line) {
    try {
      var document = Document.newBuilder();
      JsonFormat.parser().merge(line, document);
      return document.build();
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalArgumentException(error);
    }
  }

  private static String setting(String name, String fallback) {
    var value = System.getenv(name);
    return value == null ? fallback : value;
  }
}
